"""Heads of tensors, spectra and labels of atoms, by the suites that a new one inherits, and what each promises."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from e3nn import o3
from pymatgen.analysis.elasticity import ElasticTensor
from shaped import ShapedHeadSuite, TensorSuite, copper, wurtzite, zincblende
from suites import CRYSTALS
from testing import batch_of, random_crystal, rock_salt, tiny_encoder

from datamodules.crystals import Crystal
from datamodules.errors import InputError
from datamodules.properties import KNOWN, Property
from foundation.inference import Ensemble
from foundation.training.module import MultiTaskModule
from heads import AtomHead, SpectrumHead, TensorHead
from heads.constraints import SymmetricExponential, exponential, from_matrix, invariants, logarithm, to_matrix
from heads.shaped import ShapedHead
from heads.spectrum import last_peak


def tensor(formula: str) -> Property:
    return Property("tensor", "GPa", kind="tensor", formula=formula)


def of_atoms(formula: str = "") -> Property:
    return Property("of_atoms", "e", level="atom", kind="tensor" if formula else "scalar", formula=formula)


class TestVector(TensorSuite):
    def make(self, irreps_in: str) -> ShapedHead:
        return TensorHead(irreps_in, tensor("i"))


class TestDielectric(TensorSuite):
    def make(self, irreps_in: str) -> ShapedHead:
        return TensorHead(irreps_in, KNOWN["dielectric_total"], hidden=4)


class TestDefiniteDielectric(TensorSuite):
    def make(self, irreps_in: str) -> ShapedHead:
        return TensorHead(irreps_in, KNOWN["dielectric_total"], positive_definite=True)

    def label(self, crystal: Crystal, random: np.random.Generator) -> Any:
        root = random.normal(size=(3, 3))
        return np.eye(3) + root @ root.T


class TestPiezoelectric(TensorSuite):
    def make(self, irreps_in: str) -> ShapedHead:
        return TensorHead(irreps_in, KNOWN["piezoelectric_tensor"], loss="huber")


class TestPiezoelectricUpToSign(TensorSuite):
    sign_free = True

    def make(self, irreps_in: str) -> ShapedHead:
        return TensorHead(irreps_in, KNOWN["piezoelectric_tensor"], sign_free=True)


class TestElastic(TensorSuite):
    def make(self, irreps_in: str) -> ShapedHead:
        return TensorHead(irreps_in, KNOWN["elastic_tensor"], loss="mse")


class TestDefiniteElastic(TensorSuite):
    def make(self, irreps_in: str) -> ShapedHead:
        return TensorHead(irreps_in, KNOWN["elastic_tensor"], positive_definite=True, hidden=4)

    def label(self, crystal: Crystal, random: np.random.Generator) -> Any:
        root = random.normal(size=(6, 6))
        return from_matrix(torch.from_numpy(20 * np.eye(6) + 10 * root @ root.T)[None])[0].numpy()


class TestRank3WithoutSymmetry(TensorSuite):
    def make(self, irreps_in: str) -> ShapedHead:
        return TensorHead(irreps_in, tensor("ijk"))


class TestRank4WithoutSymmetry(TensorSuite):
    def make(self, irreps_in: str) -> ShapedHead:
        return TensorHead(irreps_in, tensor("ijkl"))


class TestMoments(TensorSuite):
    def make(self, irreps_in: str) -> ShapedHead:
        return AtomHead(irreps_in, KNOWN["magmom_site"], hidden=4)


class TestSizesOfMoments(TensorSuite):
    def make(self, irreps_in: str) -> ShapedHead:
        return AtomHead(irreps_in, KNOWN["magmom_site"], sign="absolute")


class TestMomentsUpToSign(TensorSuite):
    def make(self, irreps_in: str) -> ShapedHead:
        return AtomHead(irreps_in, KNOWN["magmom_site"], sign="flip")


class TestForces(TensorSuite):
    def make(self, irreps_in: str) -> ShapedHead:
        return AtomHead(irreps_in, of_atoms("i"))


class TestBornCharges(TensorSuite):
    def make(self, irreps_in: str) -> ShapedHead:
        return AtomHead(irreps_in, KNOWN["born_charges"], sum_rule=True)

    def label(self, crystal: Crystal, random: np.random.Generator) -> Any:
        values = random.normal(size=(len(crystal), 3, 3))
        return values - values.mean(axis=0)

    def test_the_sum_rule_holds_exactly(self) -> None:
        found = self.predict(*CRYSTALS)
        sums = torch.zeros(len(CRYSTALS), 3, 3).index_add(0, self.batch.batch, found)
        assert float(sums.abs().max()) < 1e-13 * float(found.abs().max()) * 50


class TestSpectrum(ShapedHeadSuite):
    def make(self, irreps_in: str) -> ShapedHead:
        return SpectrumHead(irreps_in, Property("dos", kind="spectrum", grid="0..100..11 meV"), hidden=6)

    def label(self, crystal: Crystal, random: np.random.Generator) -> Any:
        return random.random(11)

    def test_no_bin_is_negative(self) -> None:
        scaled = 10 * torch.randn(len(CRYSTALS), 11)
        assert bool((self.head.predict(scaled, self.batch) >= 0).all())


def predicted(head: ShapedHead, *crystals: Crystal) -> torch.Tensor:
    batch = batch_of(crystals)
    with torch.no_grad():
        return head.predict(head(tiny_encoder()(batch), batch), batch)


IRREPS = str(tiny_encoder().irreps_out)


def test_a_cubic_site_has_a_rank_4_part() -> None:
    torch.manual_seed(0)
    head = TensorHead(IRREPS, KNOWN["elastic_tensor"])
    found = to_matrix(predicted(head, copper()))[0]  # C11 - C12 - 2 C44: what is not isotropic
    assert abs(float(found[0, 0] - found[0, 1] - found[3, 3])) > 1e-3 * float(found.abs().max())


def test_a_tetrahedral_site_has_a_piezoelectric_tensor_and_a_centre_of_inversion_has_none() -> None:
    torch.manual_seed(0)
    head = TensorHead(IRREPS, KNOWN["piezoelectric_tensor"])
    zinc, salt, polar = (predicted(head, crystal)[0].abs().max() for crystal in (zincblende(), rock_salt(), wurtzite()))
    assert float(zinc) > 1e-4
    assert float(polar) > 1e-4
    assert float(salt) < 1e-7


@pytest.mark.parametrize("name", ["elastic_tensor", "dielectric_total"])
def test_every_prediction_is_positive_definite(name: str) -> None:
    torch.manual_seed(0)
    head = TensorHead(IRREPS, KNOWN[name], positive_definite=True)
    scaled = 3 * torch.randn(50, head.irreps_out.dim)
    found = head.predict(scaled, batch_of(CRYSTALS[:1]))
    assert float(torch.linalg.eigvalsh(to_matrix(found.double())).min()) > 0


def test_logarithm_and_exponential_are_inverse_and_tensors() -> None:
    root = torch.randn(4, 6, 6, dtype=torch.float64)
    stiffness = from_matrix(root @ root.mT + torch.eye(6, dtype=torch.float64))
    torch.testing.assert_close(exponential(logarithm(stiffness)), stiffness)
    again = logarithm(stiffness)
    torch.testing.assert_close(again, again.permute(0, 2, 1, 3, 4))
    torch.testing.assert_close(again, again.permute(0, 3, 4, 1, 2))


def test_invariants_are_moduli_and_mean_eigenvalues_in_every_frame() -> None:
    root = torch.randn(4, 6, 6, dtype=torch.float64)
    stiffness = from_matrix(root @ root.mT + torch.eye(6, dtype=torch.float64))
    rotation = o3.rand_matrix(dtype=torch.float64)
    turned = torch.einsum("ai,bj,ck,dl,nijkl->nabcd", *4 * [rotation], stiffness)
    known = [ElasticTensor(each.numpy()) for each in stiffness]
    expected = torch.tensor([[float(each.k_voigt), float(each.g_voigt)] for each in known], dtype=torch.float64)
    for tensors in (stiffness, turned):
        torch.testing.assert_close(invariants(to_matrix(tensors)), expected)
    dielectric = torch.diag(torch.tensor([1.0, 2.0, 6.0]))[None]
    assert invariants(to_matrix(dielectric)).tolist() == [[3.0]]


def test_an_error_of_the_bulk_modulus_counts_as_much_in_a_stiff_crystal() -> None:
    """Half of a stiff crystal's modulus is more GPa than half of a soft one's."""
    head = TensorHead(IRREPS, KNOWN["elastic_tensor"], positive_definite=True)
    target = from_matrix(torch.eye(6)[None] * torch.tensor([50.0, 500.0])[:, None, None])
    head.fit_scaler(target, batch_of(CRYSTALS[:2]))
    halved = head.scaler.scaled(head.tensor.to_irreps(logarithm(target / 2).float()))
    soft, stiff = head.loss(halved, target, batch_of(CRYSTALS[:2])).tolist()
    assert stiff > 1.5 * soft
    cubic = halved.clone().requires_grad_()  # all eigenvalues are equal
    (gradient,) = torch.autograd.grad(head.loss(cubic, target, batch_of(CRYSTALS[:2])).sum(), cubic)
    assert torch.isfinite(gradient).all()
    assert float(gradient.abs().max()) > 0


def test_a_definite_head_that_learned_logarithms_loads() -> None:
    head = TensorHead(IRREPS, KNOWN["elastic_tensor"], positive_definite=True)
    new = ("component_scale", "invariant_scale")
    head.load_state_dict({name: value for name, value in head.state_dict().items() if name not in new})
    assert head.invariant_scale.tolist() == [1.0, 1.0]


def test_the_exponential_and_its_gradient_where_eigenvalues_are_equal_and_where_not() -> None:
    root = torch.randn(3, 4, 4, dtype=torch.float64)
    matrix = torch.cat([root + root.mT, torch.eye(4, dtype=torch.float64)[None] * 2, torch.zeros(1, 4, 4).double()])
    matrix[3, 0, 0] += 1e-9  # nearly equal
    weight = torch.randn(5, 4, 4, dtype=torch.float64)
    found, expected = matrix.clone().requires_grad_(), matrix.clone().requires_grad_()
    own, other = SymmetricExponential.apply(found), torch.linalg.matrix_exp(expected)
    torch.testing.assert_close(own, other)
    (own * (weight + weight.mT)).sum().backward()
    (other * (weight + weight.mT)).sum().backward()
    torch.testing.assert_close(found.grad, expected.grad)


def test_labels_that_are_not_positive_definite_train_and_do_not_scale() -> None:
    head = TensorHead(IRREPS, KNOWN["dielectric_total"], positive_definite=True)
    target = torch.stack([torch.eye(3) * 4, torch.diag(torch.tensor([1.0, 2.0, -3.0])), torch.eye(3)])
    batch = batch_of(CRYSTALS[:3])
    assert head.reachable(target, batch).tolist() == [True, False, True]
    head.fit_scaler(target, batch)
    shift = head.scaler.shift.clone()
    losses, known = head.masked_loss(torch.zeros(3, 6), target, batch)
    assert known.tolist() == [True, True, True]
    assert torch.isfinite(losses).all()
    near = torch.diag(torch.tensor([1.0, 2.0, 1e-3]))[None]
    far, nearer = (
        head.loss(head.scaler.scaled(head.tensor.to_irreps(logarithm(t).float())), target[1:2], None)
        for t in (target[:1], near)
    )
    assert nearer < far
    head.fit_scaler(target[[0, 2]], batch_of(CRYSTALS[:2]))
    assert torch.equal(head.scaler.shift, shift)


def test_the_sign_of_a_piezoelectric_tensor_is_free_only_where_asked() -> None:
    for sign_free in (False, True):
        head = TensorHead(IRREPS, KNOWN["piezoelectric_tensor"], sign_free=sign_free)
        scaled = torch.randn(3, head.irreps_out.dim)
        batch = batch_of(CRYSTALS[:3])
        same = head.loss(scaled, -head.predict(scaled, batch), batch) < 1e-5
        assert same.tolist() == [sign_free] * 3


def test_a_whole_crystal_of_moments_flips_but_not_its_parts() -> None:
    head = AtomHead(IRREPS, KNOWN["magmom_site"], sign="flip")
    batch = batch_of(CRYSTALS[:2])
    scaled = torch.ones(len(batch.z), 1)
    both = head.masked_loss(scaled, -head.predict(scaled, batch), batch)[0]
    assert both.tolist() == [0.0, 0.0]
    mixed = head.predict(scaled, batch)
    mixed[0] *= -1
    assert float(head.masked_loss(scaled, mixed, batch)[0][0]) > 0.1


def test_atoms_without_a_label_do_not_count() -> None:
    head = AtomHead(IRREPS, KNOWN["magmom_site"])
    batch = batch_of(CRYSTALS[:2])
    target = torch.zeros(len(batch.z))
    target[0] = 3.0
    scaled = torch.zeros(len(batch.z), 1)
    whole = head.masked_loss(scaled, target, batch)[0]
    target[1 : int(batch.num_atoms[0])] = torch.nan
    part, known = head.masked_loss(scaled, target, batch)
    assert known.tolist() == [True, True]
    assert float(part[0]) == pytest.approx(float(whole[0]) * int(batch.num_atoms[0]))


def test_the_last_peak_is_the_last_that_is_high() -> None:
    grid = torch.arange(6.0) * 10
    spectra = torch.tensor([[0, 1, 0, 0.5, 0, 0.05], [0, 0, 0, 0.2, 0.4, 1.0], [1.0, 0.5, 0.2, 0.05, 0.01, 0]])
    assert last_peak(spectra, grid).tolist() == [30.0, 50.0, 0.0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TensorHead(IRREPS, tensor("ij=jk")), "'jk' is not a permutation of 'ij'"),
        (lambda: TensorHead(IRREPS, tensor("hello!")), "write up to four different indices"),
        (lambda: TensorHead(IRREPS, tensor("ij=ji=-ji")), "contradicts itself"),
        (lambda: TensorHead(IRREPS, Property("gap")), "property gap: a TensorHead predicts a tensor of the crystal"),
        (lambda: TensorHead(IRREPS, tensor("ijk=ikj"), positive_definite=True), "positive_definite needs the formula"),
        (lambda: TensorHead(IRREPS, tensor("ij=ji"), sign_free=True), "sign_free is for tensors of odd rank"),
        (lambda: AtomHead(IRREPS, tensor("ij")), "an AtomHead predicts a label of each atom"),
        (lambda: AtomHead(IRREPS, of_atoms("ij"), sign="absolute"), "sign absolute is for scalars"),
        (lambda: SpectrumHead(IRREPS, Property("dos", kind="spectrum")), "a spectrum of the crystal on a grid"),
        (lambda: SpectrumHead(IRREPS, Property("d", kind="spectrum", grid="0-1")), "write first..last..count unit"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_in_one_line(make: Any, message: str) -> None:
    with pytest.raises(InputError) as error:
        make()
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("formula", ["ijkl=ijlk=klij", "ijkl=klij=ijlk=jikl"])
def test_an_elastic_tensor_is_positive_definite_however_its_symmetry_is_written(formula: str) -> None:
    assert TensorHead(IRREPS, tensor(formula), positive_definite=True).irreps_out == o3.Irreps("2x0e+2x2e+1x4e")


def test_a_matrix_that_need_not_be_symmetric_is_not_positive_definite() -> None:
    with pytest.raises(InputError, match="positive_definite needs the formula"):
        TensorHead(IRREPS, tensor("ijkl=jikl=ijlk"), positive_definite=True)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("piezoelectric_tensor", lambda irreps, prop: TensorHead(irreps, prop, sign_free=True)),
        ("magmom_site", lambda irreps, prop: AtomHead(irreps, prop, sign="flip")),
    ],
)
def test_members_that_learned_the_other_sign_do_not_cancel(name: str, make: Any) -> None:
    encoder = tiny_encoder()
    one = MultiTaskModule(encoder, {name: make(str(encoder.irreps_out), KNOWN[name])})
    other = copy.deepcopy(one)
    (head,) = (head for _, head in other.named_heads())
    forward = head.forward
    head.forward = lambda features, batch: -forward(features, batch)  # type: ignore[method-assign]
    crystals = [random_crystal(5, seed=1), wurtzite()]
    ensemble = Ensemble([one.eval(), other.eval()])
    found = ensemble.predict([batch_of(crystals, encoder.recipe)])[name]
    assert np.abs(found[:, 0]).max() > 0
    np.testing.assert_array_equal(found[:, 1], found[:, 0])


def test_a_target_whose_sign_is_free_is_compared_under_the_nearer_one() -> None:
    head = TensorHead(IRREPS, KNOWN["piezoelectric_tensor"], sign_free=True)
    target = torch.randn(3, 3, 3, 3)
    said = torch.stack([-target[0], target[1], -0.1 * target[2]])
    assert torch.equal(head.comparable(said, target, None), torch.stack([-target[0], target[1], -target[2]]))
