"""Models on disk: what a checkpoint carries, and loading without running code from it.

Two forms are read: Lightning's ``.ckpt`` as training writes it, and a folder of ``model.safetensors``, ``card.json``
and ``seen.safetensors``, in which a finished encoder is shared. Both carry a card: format, architecture, optimization,
what the model was trained on, and versions; and fingerprints of the labelled crystals it has seen.
"""

from __future__ import annotations

import json
import pickle
import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from datamodules.datamodule import CrystalDataModule
from datamodules.errors import InputError
from datamodules.fingerprints import Seen
from foundation.files import write_json
from foundation.manifest import read_seen, save_seen, unknown
from foundation.training.denoising import DenoisingModule
from foundation.training.module import MultiTaskModule
from foundation.training.optimization import Optimization
from foundation.training.spec import ModelSpec

FORMAT = "crystal-foundation"
FORMAT_VERSION = 1
TRAINING_ONLY = ("weighting.", "denoising.")  # parts of a module that no prediction needs
SHIPPED = Path(__file__).parent / "pretrained"

_Content = tuple[dict[str, Any], dict[str, Tensor], Seen]  # card, weights, fingerprints


@dataclass(frozen=True)
class Checkpoint:
    """A model read from disk.

    Attributes:
        path: Where it was read.
        card: What it says of itself.
        weights: State of the ``MultiTaskModule``.
        seen: The labelled crystals that it and the checkpoints before it have seen.
    """

    path: Path
    card: dict[str, Any]
    weights: dict[str, Tensor]
    seen: Seen = field(default_factory=unknown)

    @property
    def spec(self) -> ModelSpec:
        """Its architecture."""
        return ModelSpec.from_dict(self.card["spec"])

    @property
    def elements_seen(self) -> set[int]:
        """Atomic numbers in the crystals that it was trained on, and in those of the encoder it started from."""
        source = self.card["pretrained"]
        return set(self.card["data"]["elements"]) | (set(source["data"]["elements"]) if source else set())

    def build(self) -> MultiTaskModule:
        """The model with its weights, ready to predict.

        Raises:
            InputError: If weights and architecture do not fit each other.
        """
        module = build_module(self.spec, Optimization(**self.card["optimization"]), rates=self.card["rates"])
        module.card, module.seen = self.card, self.seen
        own = {name: tensor for name, tensor in self.weights.items() if not name.startswith(TRAINING_ONLY)}
        missing, unexpected = module.load_state_dict(own, strict=False)
        if missing or unexpected:
            raise InputError(f"{self.path}: weights do not fit its own description: {(missing + unexpected)[0]}")
        return module.eval()


def build_module(
    spec: ModelSpec,
    optimization: Optimization,
    rates: Mapping[str, float] | None = None,
    kind: Callable[..., MultiTaskModule] = MultiTaskModule,
    **more: Any,
) -> MultiTaskModule:
    """Make the encoder and the heads of a spec, with fresh weights, inside one module of a kind."""
    encoder = spec.build_encoder()
    heads = {name: head.build(str(encoder.irreps_out)) for name, head in spec.heads.items()}
    return kind(encoder, heads, optimization, rates=rates, **more)


def make_card(
    spec: ModelSpec,
    module: MultiTaskModule,
    data: CrystalDataModule,
    pretrained: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What a checkpoint says of itself, as plain values.

    Args:
        spec: Architecture.
        module: The module, for its optimization and rates.
        data: What it is trained on.
        pretrained: Path and card of the checkpoint it started from.
    """
    manifest = data.store.manifest
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "spec": spec.as_dict(),
        "optimization": asdict(module.optimization),
        "denoising": asdict(module.denoising.settings) if isinstance(module, DenoisingModule) else None,
        "rates": dict(module.rates),
        "data": {
            "config": data.config,
            "store": {key: manifest.get(key) for key in ("name", "content_hash", "counts", "sources")},
            "split": {
                "how": data.split.how,
                "notes": data.split.notes,
                **{part: len(data.split.rows(part)) for part in ("train", "val", "test")},
            },
            "labels": {name: len(data.training_labels(name)[0]) for name in data.names},
            "elements": sorted(set(data.graphs.gather_atoms(data.split.train).z.tolist())),
        },
        "pretrained": dict(pretrained) if pretrained else None,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "lightning", "e3nn", "torch-geometric", "pymatgen")},
        },
    }


def find_members(path: str) -> list[Path]:
    """The checkpoints that a name stands for: several for an ensemble.

    Args:
        path: A ``.ckpt`` file, a folder with ``card.json``, the folder of a run, or the name of an encoder
            that ships with the program.

    Raises:
        InputError: If there is no such thing.
    """
    place = Path(path)
    if not place.exists() and (SHIPPED / path / "card.json").is_file():
        place = SHIPPED / path
    if place.is_file() or (place / "card.json").is_file():
        return [place]
    for pattern in ("checkpoints/last.ckpt", "seed*/checkpoints/last.ckpt", "fold*/checkpoints/last.ckpt"):
        members = sorted(place.glob(pattern))
        if members:
            return members
    shipped = ", ".join(sorted(folder.parent.name for folder in SHIPPED.glob("*/card.json"))) or "none"
    raise InputError(f"{path}: no checkpoint there, no run folder with one, nor an encoder that ships ({shipped})")


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint without running any code from it.

    Raises:
        InputError: If it is torn, or made by another program or a later format version.
    """
    card, weights, seen = _read_folder(path) if path.is_dir() else _read_file(path)
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        raise InputError(f"{path}: a checkpoint of another project (it carries no card of ours)")
    if card.get("format_version") != FORMAT_VERSION:
        raise InputError(
            f"{path}: checkpoint format {card.get('format_version')}, this program reads {FORMAT_VERSION}; "
            "use the program's version that made it"
        )
    return Checkpoint(path, card, _merged(weights), seen)


def find_resumable(path: str, spec: ModelSpec) -> str:
    """The file that a run of this architecture can go on from.

    Args:
        path: What ``find_members`` takes.
        spec: Architecture of the run.

    Raises:
        InputError: If there is none, it is torn, or it belongs to another architecture.
    """
    members = find_members(path)
    if len(members) > 1 or members[0].is_dir():
        raise InputError(f"--resume {path}: give the .ckpt file of one run")
    if load_checkpoint(members[0]).spec != spec:
        raise InputError(
            f"--resume {path}: has another encoder or other heads than this run; resume with its own config"
        )
    return str(members[0])


def save_folder(folder: Path, module: MultiTaskModule) -> None:
    """Write a finished model as ``model.safetensors``, ``card.json`` and ``seen.safetensors``."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in module.state_dict().items()
        if not name.startswith(TRAINING_ONLY)
    }
    save_file(weights, folder / "model.safetensors")
    (folder / "model.safetensors").chmod(0o644)  # safetensors makes it readable by its owner alone
    save_seen(folder, module.seen)
    write_json(folder / "card.json", module.card)


def _merged(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a module with low-rank updates, W and its A and B, as those of a plain one, W + B A."""
    mark = ".parametrizations.weight."
    plain = {name: tensor for name, tensor in weights.items() if mark not in name}
    for name in weights:
        layer, found, rest = name.partition(mark)
        if found and rest == "original":
            a, b = (weights[f"{layer}{mark}0.{part}"] for part in "ab")
            plain[f"{layer}.weight"] = torch.addmm(weights[name], b, a)
    return plain


def _read_file(path: Path) -> _Content:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(f"{path}: refused, it is torn or holds more than tensors and plain values") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise InputError(f"{path}: not a checkpoint, or torn: {(str(error) or 'empty').splitlines()[0]}") from error
    if not isinstance(content, dict) or "state_dict" not in content:
        raise InputError(f"{path}: a checkpoint of another project (it has no state_dict)")
    try:
        arrays = {name: tensor.numpy() for name, tensor in content.get("seen", {}).items()}
        seen = Seen.from_arrays(arrays) if arrays else unknown()
    except (AttributeError, ValueError) as error:
        raise InputError(f"{path}: torn: {error}") from error
    return content.get("foundation", {}), content["state_dict"], seen


def _read_folder(path: Path) -> _Content:
    try:
        card = json.loads((path / "card.json").read_text())
        return card, load_file(path / "model.safetensors"), read_seen(path)
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"{path}: torn: {str(error).splitlines()[0]}") from error
