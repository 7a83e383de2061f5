"""Relaxed cells and elastic constants of small crystals in effective-medium theory (EMT).

Coordinates of a crystal of N atoms, used throughout: six strains in Voigt order (xx, yy, zz, yz, xz, xy;
engineering shear, so a shear strain is twice the tensor's component) followed by 3N displacements in
Angstrom. Their Hessian, by central differences of stress and forces, drives the relaxation and then,
at the minimum, gives the elastic constants.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from ase import Atoms
from ase.calculators.emt import EMT
from ase.neighborlist import primitive_neighbor_list
from ase.units import GPa

Array = npt.NDArray[np.float64]

STRAIN = 2e-3  # finite strain, either sign; the most anharmonic crystals are 2 % off at 5e-3
DISPLACEMENT = 4e-3  # finite displacement in Angstrom, either sign
FORCE_TOLERANCE = 2e-5  # eV/Angstrom on an atom, and eV per atom for volume times stress


class _KeptNeighbors:
    """Neighbours found once with a margin and kept until a deformation could have used the margin up.

    EMT drops pairs beyond its own cutoff by their current distance, so the results are those of a fresh
    list; ASE builds one at every change of the cell, which takes four fifths of the time.
    """

    margin = 0.6  # Angstrom

    def __init__(self, cutoff: float) -> None:
        self.cutoff = cutoff
        self._cell: Array = np.zeros((0, 3))  # of the crystal the list was made for; empty before
        self._positions: Array = np.zeros((0, 3))

    def update(self, atoms: Atoms) -> None:
        cell = np.array(atoms.cell.array)
        if len(self._cell):
            gradient = np.linalg.solve(self._cell, cell)
            moved = np.linalg.norm(atoms.positions - self._positions @ gradient, axis=1).max()
            shrink = np.linalg.svd(gradient, compute_uv=False)[-1]
            # No pair can have come closer than this from beyond the kept radius.
            if (self.cutoff + self.margin) * shrink - 2 * moved >= self.cutoff:
                return
        self._cell, self._positions = cell, np.array(atoms.positions)
        first, second, shifts = primitive_neighbor_list(
            "ijS", (True, True, True), cell, self._positions, self.cutoff + self.margin
        )
        self._of_atom = [(second[first == atom], shifts[first == atom]) for atom in range(len(atoms))]

    def get_neighbors(self, atom: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        return self._of_atom[atom]


class Emt:
    """ASE's EMT bound to one crystal that deforms: same energy, forces and stress, six times as fast.

    Neighbours are kept, and ASE's comparison with the crystal of the last call is left out.

    Attributes:
        atoms: The crystal; its cell and positions may change, its elements not.
    """

    def __init__(self, atoms: Atoms) -> None:
        self.atoms = atoms
        self._emt = EMT()
        self._emt.initialize(atoms)
        kept: Any = _KeptNeighbors(self._emt.rc_list)
        self._emt.nl = kept

    def __call__(self) -> tuple[float, Array, Array]:
        """Energy in eV, stress [6] in eV/Angstrom^3 and forces [N, 3] in eV/Angstrom."""
        self._emt.calculate(self.atoms, ["stress"], ["positions", "cell"])
        results = self._emt.results
        return float(results["energy"]), np.array(results["stress"]), np.array(results["forces"])


@dataclass(frozen=True)
class Elastic:
    """What the Hessian at a minimum says.

    Attributes:
        tensor: [6, 6] elastic constants in GPa, Voigt order, ions relaxed at each strain.
        softest_ions: Lowest curvature in eV/Angstrom^2 against displacing the ions in the fixed cell,
            rigid translations aside; negative where the ions themselves are unstable.
    """

    tensor: Array
    softest_ions: float

    @property
    def softest_strain(self) -> float:
        """Lowest eigenvalue of the tensor in GPa; a crystal is mechanically stable where it is positive."""
        return float(np.linalg.eigvalsh(self.tensor)[0])

    def moduli(self) -> tuple[float, float]:
        """Voigt-Reuss-Hill bulk and shear modulus in GPa (Hill 1952); the crystal must be stable."""
        stiff, soft = self.tensor, np.linalg.inv(self.tensor)
        bulk_voigt, bulk_reuss = stiff[:3, :3].sum() / 9, 1 / soft[:3, :3].sum()
        # (3 trace - sum) / 2 of the upper left block is its trace minus c12, c13 and c23.
        shear_voigt = ((3 * np.trace(stiff[:3, :3]) - stiff[:3, :3].sum()) / 2 + 3 * np.trace(stiff[3:, 3:])) / 15
        shear_reuss = 15 / (2 * (3 * np.trace(soft[:3, :3]) - soft[:3, :3].sum()) + 3 * np.trace(soft[3:, 3:]))
        return float(bulk_voigt + bulk_reuss) / 2, float(shear_voigt + shear_reuss) / 2


def _deform(atoms: Atoms, cell: Array, positions: Array, change: Array) -> None:
    """Put `atoms` at `change` [6 + 3N] away from the given cell and positions."""
    xx, yy, zz, yz, xz, xy = change[:6]
    map_ = np.eye(3) + np.array([[xx, xy / 2, xz / 2], [xy / 2, yy, yz / 2], [xz / 2, yz / 2, zz]])
    atoms.set_cell(cell @ map_)
    atoms.positions = positions @ map_ + change[6:].reshape(-1, 3)


def _gradient(emt: Emt, volume: float) -> Array:
    """Volume times stress (eV), then minus the forces (eV/Angstrom), [6 + 3N]."""
    _, stress, forces = emt()
    return np.concatenate([volume * stress, -forces.ravel()])


def _hessian(emt: Emt) -> Array:
    """Hessian [6 + 3N, 6 + 3N] of the energy by central differences; leaves the crystal as it was."""
    atoms = emt.atoms
    cell, positions = np.array(atoms.cell.array), np.array(atoms.positions)
    volume = atoms.get_volume()
    size = 6 + 3 * len(atoms)
    hessian = np.empty((size, size))
    for row in range(size):
        change = np.zeros(size)
        change[row] = STRAIN if row < 6 else DISPLACEMENT
        sides = []
        for sign in (1, -1):
            _deform(atoms, cell, positions, sign * change)
            # With the volume before the strain: the derivative of the stress is the elastic constant.
            sides.append(_gradient(emt, volume))
        hessian[row] = (sides[0] - sides[1]) / (2 * change[row])
    _deform(atoms, cell, positions, np.zeros(size))
    return (hessian + hessian.T) / 2


def relax(emt: Emt, rounds: int = 8) -> bool:
    """Relax cell and positions of the crystal in place, keeping the symmetry it starts with.

    Newton steps along the Hessian's eigenvectors, downhill along negative curvature too, each Hessian used
    while it still halves the gradient. A symmetric saddle therefore stays one, to be seen in its constants.

    Args:
        emt: The crystal in EMT.
        rounds: Hessians to try at most.

    Returns:
        Whether every force and the stress fell below `FORCE_TOLERANCE`.
    """
    atoms = emt.atoms
    scale = np.ones(6 + 3 * len(atoms))
    scale[:6] = 1 / len(atoms)
    gradient = _gradient(emt, atoms.get_volume())
    for _ in range(rounds):
        curvature, modes = np.linalg.eigh(_hessian(emt))
        rigid = np.abs(curvature) < 1e-3  # the three translations
        inverse = np.where(rigid, 0.0, 1 / np.where(rigid, 1.0, np.abs(curvature)))
        before = np.inf
        while (size := float(np.abs(gradient * scale).max())) < before / 2:
            if size < FORCE_TOLERANCE:
                return True
            before = size
            step = -modes @ (inverse * (modes.T @ gradient))
            # Steps beyond 5 % strain or 0.2 Angstrom leave the range where the Hessian means anything.
            step /= max(1.0, float(np.abs(step[:6]).max()) / 0.05, float(np.abs(step[6:]).max()) / 0.2)
            _deform(atoms, np.array(atoms.cell.array), np.array(atoms.positions), step)
            gradient = _gradient(emt, atoms.get_volume())
    return bool(np.abs(gradient * scale).max() < FORCE_TOLERANCE)


def elastic_constants(emt: Emt) -> Elastic:
    """Elastic constants of a relaxed crystal from plus and minus six finite strains of `STRAIN`.

    The ions' response is included to first order, ``C = C_clamped - L^T P^-1 L / V`` with the force constants
    P and the forces per strain L (Born and Huang): the constants of a crystal whose ions follow the strain.

    Args:
        emt: The relaxed crystal in EMT.
    """
    hessian = _hessian(emt)
    ions = hessian[6:, 6:]
    # A rigid translation costs nothing: give it a stiffness, so that the rest can be inverted. The forces
    # per strain sum to zero, so its value does not enter.
    count = len(emt.atoms)
    stiffness = float(np.abs(ions).max()) + 1.0
    ions = ions + stiffness * np.kron(np.full((count, count), 1 / count), np.eye(3))
    softest = float(np.linalg.eigvalsh(ions)[0])
    clamped, coupling = hessian[:6, :6], hessian[6:, :6]
    tensor = (clamped - coupling.T @ np.linalg.solve(ions, coupling)) / emt.atoms.get_volume() / GPa
    return Elastic(tensor=(tensor + tensor.T) / 2, softest_ions=softest)
