"""What a training run says of itself: gradients, rates of its parts, throughput, memory, waiting for data.

Nothing here changes a weight, a gradient or a random number: a run is the same bit for bit without it.
"""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.optim import Optimizer

from foundation.training.agreement import gathered
from foundation.training.module import MultiTaskModule, epoch_mean
from foundation.training.precision import full_precision

_RECENT = 10  # times log_every_n_steps
_STEPS_BETWEEN = 100  # a measurement of gradients per property costs about a third of a step


def watching(sharded: bool) -> list[Callback]:
    """All that watches a run.

    Args:
        sharded: Whether no process holds all weights; gradients per property, which one process takes, are left out.
    """
    return [StepWatch(), *([] if sharded else [PropertyGradients()]), Throughput(), Recent()]


class StepWatch(Callback):
    """The first step and every ``log_every_n_steps``-th: norm of the gradient before clipping, and who trains how fast.

    Logs ``gradient_norm``; ``lr/PART`` for every part of the encoder, 0 where it is frozen or not yet thawed, and for
    the heads; ``frozen_share``, the share of the encoder's parameters whose rate is 0.
    """

    def __init__(self) -> None:
        self._rates: dict[str, float] | None = None
        self._step = 0

    def on_before_optimizer_step(self, trainer: lightning.Trainer, pl_module: Any, optimizer: Optimizer) -> None:
        """Note the rates of this step: the schedule moves on right after it."""
        self._step = trainer.global_step
        due = self._step == 0 or (self._step + 1) % trainer.log_every_n_steps == 0  # type: ignore[attr-defined]
        self._rates = rates_of_parts(pl_module, optimizer) if due and trainer.is_global_zero else None

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: Any, *_: Any) -> None:
        """Log them with the gradient of the step."""
        if self._rates is not None:
            _log(trainer, {"gradient_norm": float(pl_module.gradient_norm), **self._rates}, self._step)
            self._rates = None


class PropertyGradients(Callback):
    """How hard each property pulls on what all share, on the first batch of an epoch, at most every 100 steps.

    Logs ``train/NAME/gradient_norm`` (see ``property_gradient_norms``), of the first process's part of the batch.
    """

    def __init__(self) -> None:
        self._last: int | None = None

    def state_dict(self) -> dict[str, Any]:
        """When it was last measured, for a run that goes on."""
        return {"last": self._last}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up that."""
        self._last = state_dict["last"]

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Measure."""
        step = trainer.global_step
        if batch_idx > 0 or not trainer.is_global_zero:
            return
        if self._last is not None and step - self._last < _STEPS_BETWEEN:
            return
        self._last = step
        with isolate_rng(), trainer.precision_plugin.train_step_context():
            norms = property_gradient_norms(pl_module, batch)
        _log(trainer, {f"train/{name}/gradient_norm": norm for name, norm in norms.items()}, step)


class Throughput(Callback):
    """Every epoch: crystals per second over all processes, share of the time without a batch at hand, peak memory.

    Logs ``speed/crystals_per_second``; ``speed/data_wait``, the share of training time between the end of one step
    and the start of the next, which is waiting for data but for what logging takes; ``memory/peak_GiB`` of the GPU,
    or of the process where there is none.
    """

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Start the clock: an epoch that goes on in its middle is not announced."""
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Start the clock."""
        self._crystals, self._waited = 0, 0.0
        self._started = self._since = time.perf_counter()
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """A batch is there."""
        self._waited += time.perf_counter() - self._since

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """From here on the next batch is waited for."""
        self._crystals += len(batch.row)
        self._since = time.perf_counter()

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Log what the epoch was like."""
        seconds = max(self._since - self._started, 1e-9)
        # All processes start and end their steps together, so that their rates add up.
        rate = self._crystals / seconds
        pl_module.log("speed/crystals_per_second", rate, sync_dist=True, reduce_fx="sum")
        pl_module.log("speed/data_wait", self._waited / seconds, sync_dist=True)
        pl_module.log("memory/peak_GiB", peak_memory(pl_module.device) / 2**30, sync_dist=True, reduce_fx="max")


class Recent(Callback):
    """What epochs tell at their end, every 10 * ``log_every_n_steps`` steps: an epoch can take days.

    Logs ``train/NAME/recent_loss``, ``speed/recent_crystals_per_second`` and ``speed/recent_data_wait`` since the last
    such row, and ``memory/peak_GiB`` since the epoch began, of all processes. These talk to one another in such a step
    alone. Validation and what else stands between two epochs is no waiting for data here.
    """

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Start the clock."""
        self._stepped = False
        self._forget()
        self._since = time.perf_counter()

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._since = time.perf_counter()

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._since = time.perf_counter()

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """A batch is there."""
        self._waited += time.perf_counter() - self._since

    def on_before_optimizer_step(self, trainer: lightning.Trainer, pl_module: Any, optimizer: Optimizer) -> None:
        """Batches that are only accumulated are no steps."""
        self._stepped = True

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log what the last steps were like."""
        now = time.perf_counter()
        self._crystals += len(batch.row)
        self._seconds += now - self._since
        every = _RECENT * trainer.log_every_n_steps  # type: ignore[attr-defined]
        if self._stepped and trainer.global_step % every == 0:
            self._tell(trainer, pl_module)
            self._forget()
        self._stepped = False
        self._since = time.perf_counter()

    def _forget(self) -> None:
        self._crystals, self._waited, self._seconds = 0, 0.0, 0.0

    def _tell(self, trainer: lightning.Trainer, module: MultiTaskModule) -> None:
        own = (self._crystals / self._seconds, self._waited / self._seconds, peak_memory(module.device))
        rates, waits, peaks = zip(*gathered(own), strict=True)
        losses = {name: float(loss) for name, loss in epoch_mean(module.recent_losses).items()}
        told = {f"train/{name}/recent_loss": loss for name, loss in losses.items() if not math.isnan(loss)}
        told["speed/recent_crystals_per_second"] = sum(rates)
        told["speed/recent_data_wait"] = sum(waits) / len(waits)
        told["memory/peak_GiB"] = max(peaks) / 2**30
        if trainer.is_global_zero:
            _log(trainer, told, trainer.global_step - 1)


def property_gradient_norms(module: MultiTaskModule, batch: Any) -> dict[str, float]:
    """Norm of the gradient of each property's part of the loss with respect to the encoder's output features.

    A property's part is its weight times its sum of losses over the labels of all properties in the batch: the parts
    add up to what a step minimises. Nothing is left in the parameters.

    Args:
        module: The module.
        batch: A batch on its device.

    Returns:
        Property name -> norm; without the properties that no crystal of the batch has a label of.
    """
    with torch.no_grad():  # as it is, not compiled: compiled code knows nothing but whole steps
        features = module.encoder.forward(batch, batch.known if "known" in batch else None)
    features.requires_grad_()
    with torch.enable_grad(), full_precision(features) as exact:
        sums, counts, _ = module.losses_of_heads(exact, batch)
        parts = module.weighting.weights() * sums / counts.sum().clamp(min=1)
        norms = {}
        for name, part, count in zip(module.names, parts, counts.tolist(), strict=True):
            if count > 0:
                (gradient,) = torch.autograd.grad(part, features, retain_graph=True)
                norms[name] = float(gradient.norm())
    return norms


def rates_of_parts(module: MultiTaskModule, optimizer: Optimizer) -> dict[str, float]:
    """Learning rate of every part by what is logged, and the share of the encoder that stands still.

    Args:
        module: The module.
        optimizer: Its optimizer, whose groups hold parameters of one part each.
    """
    rate_of = {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    stages = module.encoder.stages()
    rates = {f"lr/{name}": _rate(part.parameters(), rate_of) for name, part in stages.items()}
    sizes = {f"lr/{name}": sum(parameter.numel() for parameter in part.parameters()) for name, part in stages.items()}
    still = sum(size for name, size in sizes.items() if rates[name] == 0)
    rates["frozen_share"] = still / max(1, sum(sizes.values()))
    others: dict[str, nn.Module] = {"heads": module.heads, "task_weights": module.weighting}
    for name, part in others.items():
        if any(True for _ in part.parameters()):
            rates[f"lr/{name}"] = _rate(part.parameters(), rate_of)
    return rates


def peak_memory(device: torch.device) -> int:
    """Bytes: of the GPU since the peak was last reset, or of this process since its start."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _rate(parameters: Iterator[Tensor], rate_of: Mapping[int, float]) -> float:
    return max((rate_of.get(id(parameter), 0.0) for parameter in parameters), default=0.0)


def _log(trainer: lightning.Trainer, values: dict[str, float], step: int) -> None:
    for logger in trainer.loggers:
        logger.log_metrics(values, step=step)
