"""What a model is made of, as plain values that fit a YAML file and a checkpoint."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
from dataclasses import asdict, dataclass
from typing import Any

from datamodules.errors import InputError
from datamodules.properties import Property
from foundation.encoder.cuequivariance import is_installed
from foundation.encoder.encoder import EquivariantEncoder
from heads import Head


def import_subclass(class_path: str, base: type) -> Any:
    """The class of this import path.

    Raises:
        InputError: If there is none, or it is no subclass of ``base``.
    """
    module, _, name = class_path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"there is no class {class_path!r}") from error
    if not (isinstance(found, type) and issubclass(found, base)):
        raise InputError(f"{class_path} is not a subclass of {base.__name__}")
    return found


@dataclass(frozen=True)
class HeadSpec:
    """One head.

    Attributes:
        class_path: Import path of a subclass of ``heads.Head``.
        init_args: Its arguments beside irreps and property.
        property: What it predicts.
    """

    class_path: str
    init_args: dict[str, Any]
    property: Property

    def build(self, irreps_in: str) -> Head:
        """Make the head.

        Raises:
            InputError: If the class is not a head or refuses the arguments.
        """
        if "." in self.property.name:
            raise InputError(f"property {self.property.name}: a head's name holds no dot; rename it with --map old=new")
        try:
            head: Head = import_subclass(self.class_path, Head)(irreps_in, self.property, **self.init_args)
        except TypeError as error:
            raise InputError(f"head {self.property.name}: {error}") from error
        return head


def encoder_defaults() -> dict[str, Any]:
    """Arguments of ``EquivariantEncoder`` where nothing is said."""
    return {
        name: parameter.default
        for name, parameter in inspect.signature(EquivariantEncoder).parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }


@dataclass(frozen=True)
class ModelSpec:
    """Encoder and heads.

    Attributes:
        encoder: Arguments of ``EquivariantEncoder``.
        heads: One head per property name.
    """

    encoder: dict[str, Any]
    heads: dict[str, HeadSpec]

    @property
    def encoder_hash(self) -> str:
        """Hash of the encoder's arguments, defaults included: the same in benchmarks and in metrics.json."""
        text = json.dumps({**encoder_defaults(), **self.encoder}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def build_encoder(self) -> EquivariantEncoder:
        """Make the encoder with fresh weights.

        Raises:
            InputError: If the arguments do not fit.
        """
        try:
            return EquivariantEncoder(**self.encoder)
        except (TypeError, ValueError) as error:
            raise InputError(f"encoder: {error}") from error

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> ModelSpec:
        """The inverse of ``as_dict``, with plain products where what computed them is not installed: they are equal."""
        heads = {
            name: HeadSpec(head["class_path"], head["init_args"], Property(**head["property"]))
            for name, head in plain["heads"].items()
        }
        encoder = dict(plain["encoder"])
        if encoder.get("products") == "cuequivariance" and not is_installed():
            encoder["products"] = "plain"
        return cls(encoder=encoder, heads=heads)
