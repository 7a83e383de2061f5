"""``--trainer.strategy fsdp2``: every process keeps a part of the weights and of the optimizer's state.

Each part of the encoder and each head is a unit of torch's ``fully_shard``: its weights are gathered while it computes
and let go afterwards, its gradients are averaged over the processes, as DDP does, and each process keeps its share.
Checkpoints are whole, the same as without, and so is the module after training.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.optim import Optimizer

from datamodules.errors import InputError
from foundation.training.optimization import ExponentialAverage
from foundation.training.shards import like, local, whole

NAME = "fsdp2"


def is_sharded(trainer_args: Mapping[str, Any]) -> bool:
    """Whether these arguments of a trainer ask for sharding."""
    return bool(trainer_args.get("strategy") == NAME)


def check_sharding(module: nn.Module, own: Sequence[Callback]) -> None:
    """Refuse what does not go together with sharded weights.

    Args:
        module: What trains.
        own: Callbacks of the adaptation strategy.

    Raises:
        InputError: For a strategy that touches weights while they train, or keeps them in another form.
    """
    if own or any(".parametrizations." in name for name, _ in module.named_parameters()):
        raise InputError(f"--trainer.strategy {NAME}: the adaptation strategy works on whole weights; use ddp")


class Sharded(ModelParallelStrategy):
    """Lightning's strategy for FSDP2, which shards a ``MultiTaskModule`` by itself."""

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)
        self._plain: dict[str, nn.Module] = {}  # unsharded copies of the units, without weights

    def setup_environment(self) -> None:
        """All processes share one copy of the weights."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def setup(self, trainer: lightning.Trainer) -> None:
        """Shard the module, then make the optimizer: Lightning's own setup wants the module to shard itself."""
        assert self.model is not None
        assert self.accelerator is not None
        self.accelerator.setup(trainer)
        self.model = self.precision_plugin.convert_module(self.model)
        self.model_to_device()
        if trainer.state.fn == TrainerFn.FITTING:
            for path in unit_paths(self.model):
                self._shard(path)
        self.barrier()
        if trainer.state.fn == TrainerFn.FITTING:
            self.setup_optimizers(trainer)
        self.setup_precision_plugin()

    def teardown(self) -> None:
        """Leave a module with whole weights in every process, as other strategies do."""
        assert self.model is not None
        for path, plain in self._plain.items():
            unit = self.model.get_submodule(path)
            for own, sharded in zip(plain.parameters(), unit.parameters(), strict=True):
                own.data = whole(sharded.detach())
            for buffer, kept in zip(plain.buffers(), unit.buffers(), strict=True):
                buffer.data = kept
            self._replace(path, plain)
        self._plain.clear()
        self.optimizers = []  # of weights that are gone
        super().teardown()

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Optimizer states are those of a whole model, which Lightning's own strategy does not read."""
        return True

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The state of an optimizer of whole weights; empty but in the first process."""
        found = optimizer.state_dict()
        state = {
            number: {name: whole(value).cpu() for name, value in kept.items()}
            for number, kept in found["state"].items()
        }
        return {**found, "state": state} if self.is_global_zero else {}

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a whole checkpoint, in every process."""
        return Strategy.load_checkpoint(self, checkpoint_path, weights_only=True)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Take this process's share of the weights."""
        load_shards(self.model, checkpoint["state_dict"])

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take this process's share of the optimizer's state."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            numbers = [number for group in state["param_groups"] for number in group["params"]]
            for number, parameter in zip(numbers, parameters, strict=True):
                for name, value in state["state"].get(number, {}).items():
                    if value.shape == parameter.shape:
                        state["state"][number][name] = like(parameter, value)
            optimizer.load_state_dict(state)

    def _shard(self, path: str) -> None:
        assert self.model is not None
        unit = self.model.get_submodule(path)
        for tensor in unit.state_dict().values():
            torch.distributed.broadcast(tensor, src=0)
        self._plain[path] = copy.deepcopy(unit)
        for parameter in self._plain[path].parameters():
            parameter.data = parameter.data.new_empty(0)
        # Let go of gathered weights at once, though each unit is a root of its own, which torch would keep whole.
        fully_shard(unit, mesh=self.device_mesh["data_parallel"], reshard_after_forward=True)
        if self.root_device.type == "cpu":  # gloo adds up, but does not average
            assert isinstance(unit, FSDPModule)
            unit.set_force_sum_reduction_for_comms(True)

    def _replace(self, path: str, unit: nn.Module) -> None:
        assert self.model is not None
        parent, _, name = path.rpartition(".")
        self.model.get_submodule(parent)._modules[name] = unit


def unit_paths(module: nn.Module) -> list[str]:
    """The parts that are sharded each on its own, together all weights: stages, heads, and what stands beside them."""
    encoder: Any = module.get_submodule("encoder")
    paths = [f"encoder.{name}" for name in encoder.stages()]
    paths += [f"heads.{name}" for name, _ in module.get_submodule("heads").named_children()]
    others = [name for name, _ in module.named_children() if name not in ("encoder", "heads")]
    return [path for path in [*paths, *others] if any(True for _ in module.get_submodule(path).parameters())]


def load_shards(module: nn.Module | None, weights: dict[str, Tensor]) -> None:
    """Load whole weights into a sharded module; every process has them and takes its share."""
    assert module is not None
    set_model_state_dict(module, dict[str, Any](weights), options=StateDictOptions(full_state_dict=True))


class ShardedAverage(ExponentialAverage):
    """The moving average of sharded weights, of which every process keeps its share.

    Args:
        decay: Decay of the average per step.
    """

    def __init__(self, decay: float) -> None:
        super().__init__(decay)
        self._average: list[Tensor] = []
        self._count = torch.zeros((), dtype=torch.long)

    @property
    def state_key(self) -> str:
        """A run may go on with another strategy."""
        return ExponentialAverage.__qualname__

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Nothing: weights are not sharded yet."""

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Begin at the weights as they are."""
        self._average = [shard.clone() for shard in _shards(pl_module)]

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: Any) -> None:
        """Take in the weights after an optimizer step."""
        if trainer.global_step > self._latest_update_step:
            # The first step is copied, as torch's AveragedModel does.
            if self._count == 0:
                torch._foreach_copy_(self._average, _shards(pl_module))
            else:
                self._kwargs["multi_avg_fn"](self._average, _shards(pl_module), self._count)
            self._count += 1
            self._latest_update_step = trainer.global_step

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Nothing: every step has been taken in."""

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Leave the average in the module."""
        torch._foreach_copy_(_shards(pl_module), self._average)

    def on_fit_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Nothing: weights are whole again by now."""

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save the average as the weights, and the weights beside them."""
        checkpoint["current_model_state"] = checkpoint["state_dict"]
        self._swap_models(pl_module)
        checkpoint["state_dict"] = trainer.strategy.lightning_module_state_dict()
        self._swap_models(pl_module)
        checkpoint["averaging_state"] = {"n_averaged": self._count.clone()}

    def on_load_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take the average, which has been loaded as the weights, and load the weights."""
        self._average = [shard.clone() for shard in _shards(pl_module)]
        if "averaging_state" in checkpoint:
            self._count = checkpoint["averaging_state"]["n_averaged"].clone()
            load_shards(pl_module, checkpoint["current_model_state"])

    def _swap_models(self, pl_module: lightning.LightningModule) -> None:
        for own, current in zip(self._average, _shards(pl_module), strict=True):
            kept = own.clone()
            own.copy_(current)
            current.copy_(kept)

    def on_validation_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Validate the average."""
        self._swap_models(pl_module)

    def on_validation_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Go on with the weights."""
        self._swap_models(pl_module)


def _shards(module: nn.Module) -> list[Tensor]:
    return [local(parameter.detach()) for parameter in module.parameters()]
