"""Old properties are rehearsed, so that their heads stay alive (Robins, Connection Science 1995)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datamodules.datamodule import CrystalDataModule
from datamodules.errors import InputError
from datamodules.replay import Rehearsal
from foundation.checkpoint import Checkpoint
from foundation.inference import Ensemble, evaluate
from foundation.strategies.full import Full
from foundation.training.module import MultiTaskModule


class Replay(Full):
    """The whole encoder trains on the new property and, in a share of the batches, on those of pretraining.

    The checkpoint's heads stay beside the new one. What was forgotten all the same is measured on the crystals that
    validated in pretraining, and stands in metrics.json.

    Args:
        store: Store that the checkpoint was pretrained on.
        share: Share of the batches that rehearse.
        exclude: What pretraining kept out of its training, if that stands elsewhere now.
        layer_decay: Factor on the learning rate per block away from the readout; 1 for none.
        rate: Rate of the encoder relative to the head's.
    """

    keeps_other_heads = True

    def __init__(
        self,
        store: str | None = None,
        share: float = 0.3,
        exclude: list[str] | None = None,
        layer_decay: float = 1.0,
        rate: float = 1.0,
    ) -> None:
        super().__init__(layer_decay, rate)
        if store is None:
            raise InputError("replay: say which store to rehearse: --strategy.init_args.store STORE")
        if not 0 < share < 1:
            raise InputError(f"replay: share {share} is no share of the batches; give one between 0 and 1")
        self.store = store
        self.share = share
        self.exclude = exclude
        self._old: CrystalDataModule | None = None
        self._before: dict[str, Any] = {}

    def prepare(self, module: MultiTaskModule, data: CrystalDataModule, pretrained: Checkpoint | None) -> None:
        """Open the store, split as in pretraining, and see how good the old heads are."""
        assert pretrained is not None
        config = pretrained.card["data"]["config"]
        changes = {"store": self.store, "batch_size": data.batch_size}
        self._old = CrystalDataModule(**(config | changes | ({"exclude": self.exclude} if self.exclude else {})))
        self._old.choose([name for name in module.names if name not in data.names], module.encoder.recipe)
        known = pretrained.card["data"]["store"]["content_hash"]
        if self._old.store.content_hash != known:
            raise InputError(f"replay: {self.store} is not the store that {pretrained.path} was pretrained on")
        self._old.leave_out({data.store.formulas[row] for row in data.split.test})
        data.rehearsal = Rehearsal(self._old, self.share, first_column=len(data.names))
        self._before = self._errors(module)

    def finish(self, module: MultiTaskModule, data: CrystalDataModule, folder: Path) -> dict[str, Any]:
        """How good the old heads were and are."""
        after = self._errors(module)
        return {"forgotten": {name: {"before": self._before[name], "after": after[name]} for name in after}}

    def _errors(self, module: MultiTaskModule) -> dict[str, Any]:
        assert self._old is not None
        module.eval()
        return evaluate(Ensemble([module]), self._old, "val")[0]
