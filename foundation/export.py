"""A model as a folder that runs without this program: one compiled program, its card and a script that uses it.

The script is ``foundation/exported/predict.py``, and the modules of ``datamodules`` that it imports ship beside it
as they are, so that the graphs of a package are made by the very code that made those of training.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

import datamodules
from datamodules.batching import CrystalBatch, build_graphs
from datamodules.crystals import Crystal, as_crystal
from datamodules.errors import InputError
from datamodules.graph import NeighborRecipe
from foundation.checkpoint import Checkpoint
from foundation.columns import Columns
from foundation.encoder.elements import NUM_ELEMENTS
from foundation.exported.model import GraphTensors, PackagedModel
from foundation.files import write_json
from foundation.inference import SPREAD, Ensemble
from foundation.quickstart.prototypes import starts

TOLERANCE = 1e-5  # of the largest prediction of a property
PROGRAM = "model.pt2"
_SCRIPT = Path(__file__).parent / "exported" / "predict.py"
_OURS = re.compile(r"^from datamodules\.([\w.]+) import", re.MULTILINE)
_BATCHES = (1, 2, 3, 16, 64)  # crystals in each batch that the program is checked on


def free_place(out: Path) -> Path:
    """The folder to make.

    Raises:
        InputError: If there is something of that name already, or no folder to make it in.
    """
    if os.path.lexists(out):
        raise InputError(f"--out {out}: exists already; choose another name")
    if not out.absolute().parent.is_dir():
        raise InputError(f"--out {out}: there is no folder {out.parent}")
    return out


def export_package(checkpoints: Sequence[Checkpoint], out: Path, format: str) -> dict[str, Any]:
    """Write a package, compare it with the models, then put it in place.

    Args:
        checkpoints: The members of an ensemble, or one model.
        out: Folder to make.
        format: "torch_export" or "aot_inductor", which is compiled for the machine at hand.

    Returns:
        What the comparison found, as it stands in the card.

    Raises:
        InputError: If the program cannot be made here, or does not predict what the models predict.
    """
    checkpoints = [_with_plain_products(checkpoint) for checkpoint in checkpoints]
    ensemble = Ensemble([checkpoint.build() for checkpoint in checkpoints])
    shaped = [name for name, head in ensemble.heads.items() if not head.is_single]
    if shaped:
        raise InputError(f"a package predicts one number per crystal and property, which {', '.join(shaped)} is not")
    model = PackagedModel(ensemble).eval().requires_grad_(False)
    batches = list(_check_batches(ensemble.recipe, _elements_seen(checkpoints)))
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        temporary.mkdir()
    except OSError as error:
        raise InputError(f"--out {out}: cannot be written ({error.strerror}); choose another place") from error
    try:
        _write_script(temporary)
        _write_program(model, batches[-1], temporary / PROGRAM, format)
        checked = _compare(_load_program(temporary / PROGRAM, format), ensemble, model.columns, batches)
        card = _card(checkpoints, ensemble, format)
        write_json(temporary / "card.json", card | {"checked": checked})
        os.rename(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # gone already where all went well
    return checked


def _with_plain_products(checkpoint: Checkpoint) -> Checkpoint:
    """The same weights and numbers, without kernels of a library that a package cannot count on."""
    spec = checkpoint.card["spec"]
    plain = spec | {"encoder": spec["encoder"] | {"products": "plain"}}
    return replace(checkpoint, card=checkpoint.card | {"spec": plain})


def _write_program(model: PackagedModel, example: CrystalBatch, path: Path, format: str) -> None:
    atoms, edges, crystals = (torch.export.Dim(name) for name in ("atoms", "edges", "crystals"))
    sizes = {"z": {0: atoms}, "batch": {0: atoms}, "num_atoms": {0: crystals}, "volume": {0: crystals}}
    shapes = {**sizes, "edge_index": {1: edges}, "edge_vector": {0: edges}, "cutoff": {0: atoms}}
    if format == "aot_inductor":
        _need_compiler()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch warns of its own deprecated calls on the way
        # Strict, since tracing without it takes len() of a tensor for a constant.
        program = torch.export.export(model, tuple(GraphTensors.of(example)), dynamic_shapes=shapes, strict=True)
        for node in program.graph.nodes:  # where each line of ours stood: most of the file, and of no use elsewhere
            node.meta.pop("stack_trace", None)
            node.meta.pop("from_node", None)
        if format == "aot_inductor":
            from torch._inductor import aoti_compile_and_package

            logging.getLogger("torch._inductor.ir").setLevel(logging.ERROR)  # of an eigenvalue that it has no code for
            # Code for any number of threads adds up with atomic operations and is not vectorised: on one core it takes
            # five times as long.
            aoti_compile_and_package(program, package_path=str(path), inductor_configs={"cpp.threads": 1})
        else:
            torch.export.save(program, path)


def _need_compiler() -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise InputError(
            "--format aot_inductor: found no C++ compiler; install g++, name one in $CXX, or take torch_export"
        ) from error


def _load_program(path: Path, format: str) -> Any:
    if format == "aot_inductor":
        from torch._inductor import aoti_load_package

        return aoti_load_package(str(path))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as above
        return torch.export.load(path).module()


def _check_batches(recipe: NeighborRecipe, elements: Sequence[int]) -> Iterator[CrystalBatch]:
    """Batches of prototypes, their metals replaced by all elements in turn; the first has an atom with two edges."""
    far = recipe.max_cutoff
    lonely = Crystal(np.diag([0.9 * far, 3 * far, 3 * far]), np.zeros((1, 3)), np.array(elements[:1]), "lonely")
    yield build_graphs([lonely], recipe).gather([0])
    shipped = [as_crystal(start.atoms()) for start in starts()]
    chosen = [shipped[place] for place in np.linspace(0, len(shipped) - 1, sum(_BATCHES), dtype=int)]
    table = np.resize(elements, 119)  # atomic number -> element, another for each crystal by rolling it on
    changed = [replace(crystal, numbers=np.roll(table, k)[crystal.numbers]) for k, crystal in enumerate(chosen)]
    graphs = build_graphs(changed, recipe)
    stop = np.cumsum(_BATCHES)
    for start, end in zip(stop - _BATCHES, stop, strict=True):
        yield graphs.gather(np.arange(start, end))


@torch.no_grad()
def _compare(
    program: Any, ensemble: Ensemble, columns: dict[str, str], batches: Sequence[CrystalBatch]
) -> dict[str, Any]:
    """Largest deviation of a program from its models, relative to the largest prediction of each property.

    Raises:
        InputError: If it is not below the tolerance.
    """
    outputs = [program(*GraphTensors.of(batch)) for batch in batches]
    members = [[model(batch) for model in ensemble.models] for batch in batches]
    largest = 0.0
    for name, column in columns.items():
        # [K, all crystals]
        expected = torch.cat([torch.stack([member[name] for member in parts]) for parts in members], dim=1).double()
        pairs = [(column, expected.mean(dim=0))]
        if len(ensemble) > 1:
            pairs.append((column + SPREAD, expected.std(dim=0)))
        for key, value in pairs:
            found = torch.cat([output[key] for output in outputs]).double()
            deviation = float((found - value).abs().max() / expected.abs().max().clamp(min=1e-12))
            if not deviation < TOLERANCE:  # true for NaN as well
                raise InputError(
                    f"the exported program predicts another {key} than the model: it differs by {deviation:.1e} of the "
                    f"largest value, allowed are {TOLERANCE:.0e}; no package is written"
                )
            largest = max(largest, deviation)
    sizes = [len(batch.num_atoms) for batch in batches]
    return {"largest_deviation": largest, "tolerance": TOLERANCE, "batches": len(sizes), "largest_batch": max(sizes)}


def _write_script(folder: Path) -> None:
    """Copy ``predict.py`` and whatever it needs of ``datamodules``, under a name that the folder itself provides."""
    root = Path(datamodules.__file__).parent
    waiting = [(_SCRIPT, folder / "predict.py")]
    done: set[str] = set()
    while waiting:
        source, target = waiting.pop()
        text = source.read_text(encoding="utf-8")
        for name in set(_OURS.findall(text)) - done:
            done.add(name)
            part = Path(*name.split(".")).with_suffix(".py")
            waiting.append((root / part, folder / "crystal_graphs" / part))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(_OURS.sub(r"from crystal_graphs.\1 import", text), encoding="utf-8")


def _elements_seen(checkpoints: Sequence[Checkpoint]) -> list[int]:
    return sorted(set.union(*(checkpoint.elements_seen for checkpoint in checkpoints)))


def _card(checkpoints: Sequence[Checkpoint], ensemble: Ensemble, format: str) -> dict[str, Any]:
    """What the package says of itself; ``predict.py`` reads program, neighbors and elements."""
    card = checkpoints[0].card
    return {
        "format": "crystal-foundation package",
        "format_version": 1,
        "program": {
            "file": PROGRAM,
            "format": format,
            "device": "cpu",
            "inputs": list(GraphTensors._fields),
            "outputs": Columns(ensemble).names,
        },
        "properties": [ensemble.properties[name].as_dict() for name in ensemble.names],
        "neighbors": asdict(ensemble.recipe),
        "elements": {"seen": _elements_seen(checkpoints), "last": NUM_ELEMENTS},
        "members": len(checkpoints),
        "spec": card["spec"],
        "data": card["data"],
        "pretrained": card["pretrained"],
        "versions": {
            "trained with": card["versions"],
            "exported with": {name: version(name) for name in ("crystal-foundation", "torch", "numpy", "pymatgen")},
        },
    }
