"""Joint training of one encoder and many heads on labels that are mostly missing."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn

import lightning
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from datamodules.fingerprints import Seen
from foundation.encoder.encoder import EquivariantEncoder
from foundation.training.agreement import any_process, gathered, num_processes
from foundation.training.metrics import MeanLosses, PropertyMetrics
from foundation.training.optimization import Optimization, make_optimizer, parameter_groups, rate_at
from foundation.training.precision import full_precision
from foundation.training.shards import local, whole
from foundation.training.vote import StepVote
from foundation.training.weighting import FixedWeights, TaskWeighting
from heads import Head


class NonFiniteLoss(RuntimeError):
    """The loss is NaN or infinite; the message names the crystals of the batch."""


class Answer(NamedTuple):
    """What a head says of the crystals it was asked about.

    Attributes:
        scaled: Its output for them, in scaled space, detached.
        batch: These crystals.
        target: Their labels in physical units, NaN where missing.
    """

    scaled: Tensor
    batch: Any
    target: Tensor


class _Part(NamedTuple):
    """What is kept of a batch until its step is taken.

    Attributes:
        rows: [B] its crystals.
        labels: [] their number of labels.
        sums: [P] sums of losses.
        total: [] what is minimised.
    """

    rows: Tensor
    labels: Tensor
    sums: Tensor
    total: Tensor


class _Metrics(nn.ModuleDict):
    """Metrics per property; typed loosely, since a ModuleDict does not say what it holds."""

    def __getitem__(self, key: str) -> Any:
        return super().__getitem__(key)


class MultiTaskModule(lightning.LightningModule):
    """A shared encoder, one head per property, and their joint loss.

    Every head runs on every batch; a missing label is NaN and is masked, so all processes of a distributed run
    use all parameters in every step. Heads of more than one number per crystal cost as much as a good part of the
    encoder and have few labels: they run on the crystals with a label, and on one crystal where there is none.

    Args:
        encoder: The shared encoder.
        heads: One head per property; batches carry the labels in this order.
        optimization: How weights are changed.
        weighting: How losses are weighed; by default every label counts the same.
        rates: Rate of every stage of the encoder relative to the learning rate, 0 for frozen; by default 1.
        thaws: Share of the steps during which a stage is held still before it trains; by default 0.
    """

    def __init__(
        self,
        encoder: EquivariantEncoder,
        heads: Mapping[str, Head],
        optimization: Optimization | None = None,
        weighting: TaskWeighting | None = None,
        rates: Mapping[str, float] | None = None,
        thaws: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = nn.ModuleDict(heads)
        self.names = list(heads)
        self.optimization = optimization or Optimization()
        self.weighting = weighting or FixedWeights(self.names)
        self.beside: list[nn.Module] = [self.heads, self.weighting]  # what trains beside the encoder
        self.rates = dict(rates) if rates is not None else dict.fromkeys(encoder.stages(), 1.0)
        self.thaws = dict(thaws or {})
        # Before any wrap for distributed training: a part that thaws after the wrap is not synchronised.
        for name, stage in encoder.stages().items():
            stage.requires_grad_(self.rates[name] > 0)
        self.train_losses = MeanLosses(self.names)  # of the epoch
        self.recent_losses = MeanLosses(self.names)  # since they were last told
        self.val_losses = MeanLosses(self.names)
        self.val_metrics = _Metrics({name: PropertyMetrics(head) for name, head in heads.items()})
        self.vote = StepVote()
        self._parts: list[_Part] = []  # of the step, one per accumulated batch
        self.gradient_norm = torch.zeros(())  # of the last step, before clipping
        self.card: dict[str, Any] = {}
        self.seen = Seen.nothing()  # labelled crystals that the weights have been trained on

    def train(self, mode: bool = True) -> MultiTaskModule:
        """Frozen parts stay in evaluation mode, so that nothing about them is random."""
        super().train(mode)
        for name, stage in self.encoder.stages().items():
            if self.rates[name] == 0:
                stage.eval()
        return self

    def forward(self, batch: Any) -> dict[str, Tensor]:
        """Predictions in physical units: property name -> [B], or of another shape as its head says."""
        features = self.encoder.forward(batch, batch.known if "known" in batch else None)
        return {name: head.predict(head(features, batch), batch) for name, head in self.named_heads()}

    def training_step(self, batch: Any, batch_index: int) -> Tensor:
        """The weighted sum of losses of this process's part of the batch.

        The division by the number of labels is left to ``on_before_optimizer_step``, when the labels of all
        processes and of all accumulated batches are counted: a mean of means would weigh labels unevenly.
        """
        sums, counts, _ = self.losses(batch)
        return self.finish_step(batch, sums, counts, self.weighting(sums, counts))

    def finish_step(self, batch: Any, sums: Tensor, counts: Tensor, total: Tensor) -> Tensor:
        """Take note of what is behind the loss.

        Args:
            batch: The batch.
            sums: [P] sums of losses.
            counts: [P] numbers of labels.
            total: What is to be minimised, not yet divided by the number of labels.
        """
        self._parts.append(_Part(batch.row, counts.sum(), sums.detach(), total.detach()))
        for losses in (self.train_losses, self.recent_losses):
            losses.update(sums.detach(), counts)
        # Lightning divides by the number of accumulated batches; the count of labels does that already.
        undone: Tensor = total * self.trainer.accumulate_grad_batches
        return undone

    def on_train_start(self) -> None:
        """Send no buffers round in every step: they are constants by now, and were sent when the model was wrapped."""
        wrapped = self.trainer.model
        if isinstance(wrapped, DistributedDataParallel):
            wrapped.broadcast_buffers = False

    def on_before_backward(self, loss: Tensor) -> None:
        """Tell the other processes of this batch; callbacks have said by now what they wish."""
        part = self._parts[-1]
        self.vote.cast(part.labels, torch.isfinite(part.total))

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Divide the gradient by the number of labels behind it, over all processes and accumulated batches.

        Raises:
            NonFiniteLoss: On all processes, if the loss of a batch is NaN or infinite on one of them.
        """
        labels, bad = self.vote.count()
        parts, self._parts = self._parts, []
        if bad is not None:
            self._stop(parts[bad].total, parts[bad].rows, parts[bad].sums)
        # DDP and FSDP2 have averaged over processes: times the world size is the sum.
        scale = num_processes() / max(1, labels)
        gradients = [parameter.grad for parameter in self.parameters() if parameter.grad is not None]
        torch._foreach_mul_([local(gradient) for gradient in gradients], scale)
        self.gradient_norm = whole(nn.utils.get_total_norm(gradients))

    def on_train_epoch_end(self) -> None:
        """Log the training loss of every property and the effective weights."""
        weights, losses = self.weighting.weights(), epoch_mean(self.train_losses)
        for name, weight in zip(self.names, weights, strict=True):
            self.log(f"train/{name}/loss", losses[name], sync_dist=True)
            self.log(f"train/{name}/weight", weight)

    def validation_step(self, batch: Any, batch_index: int) -> None:
        """Take in one batch.

        Raises:
            NonFiniteLoss: If a loss is NaN or infinite.
        """
        sums, counts, answers = self.losses(batch)
        if any_process([not _is_finite(sums)], sums.device)[0]:
            self._stop(sums, batch.row, sums)
        self.val_losses.update(sums, counts)
        for index, (name, head) in enumerate(self.named_heads()):
            if index < batch.labels.shape[1]:
                scaled, asked, target = answers[name]
                predicted = head.predict(scaled, asked)
                self.val_metrics[name].update(predicted, head.comparable(predicted, target, asked))

    def on_validation_epoch_end(self) -> None:
        """Log metrics in physical units, and ``val/loss``: the mean over properties of the scaled loss."""
        losses, of_properties = [], epoch_mean(self.val_losses)
        for name in self.names:
            metrics = self.val_metrics[name].compute()
            self.val_metrics[name].reset()
            for metric, value in metrics.items():
                self.log(f"val/{name}/{metric}", value)
            if metrics:
                losses.append(of_properties[name])
                self.log(f"val/{name}/loss", of_properties[name])
        if losses:
            self.log("val/loss", torch.stack(losses).mean(), prog_bar=True)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer with one group per part that trains, and the schedule, stepped every step."""
        optimizer = self.make_optimizer()
        steps = self._total_steps()
        factors = [rate_at(self.optimization, steps, group["thaws_at"]) for group in optimizer.param_groups]
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factors)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def make_optimizer(self) -> Optimizer:
        """What changes the weights that train, at the rates of their parts."""
        groups = parameter_groups(self.encoder.stages(), self.rates, self.beside, self.optimization, self.thaws)
        return make_optimizer(groups, self.optimization)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what is needed to rebuild, describe and trust the model."""
        checkpoint["foundation"] = self.card
        checkpoint["seen"] = {name: torch.from_numpy(array) for name, array in self.seen.arrays().items()}

    def losses(self, batch: Any) -> tuple[Tensor, Tensor, dict[str, Answer]]:
        """[P] sums of losses, [P] numbers of labels, and the heads' answers."""
        known = batch.known if "known" in batch else None
        # A compiled encoder is compiled for training; validation runs it as it is and needs no second compilation.
        encoded = self.encoder(batch, known) if self.training else self.encoder.forward(batch, known)
        with full_precision(encoded) as features:
            return self.losses_of_heads(features, batch)

    def losses_of_heads(self, features: Tensor, batch: Any) -> tuple[Tensor, Tensor, dict[str, Answer]]:
        """The same from the encoder's features [N, D], in single precision at least."""
        sums, counts, answers = [], [], {}
        # Labels of the first heads only: the others have none here, as old heads have in the new property's data.
        labels = nn.functional.pad(batch.labels, (0, len(self.names) - batch.labels.shape[1]), value=torch.nan)
        for index, (name, head) in enumerate(self.named_heads()):
            own, asked, column = features, batch, labels[:, index]
            if not head.is_single:
                own, asked, column = _labelled(features, batch, column)
            scaled, target = head(own, asked), head.target(column, asked)
            losses, known = head.masked_loss(scaled, target, asked)  # [B]
            sums.append(losses.sum())
            counts.append(known.sum())
            answers[name] = Answer(scaled.detach(), asked, target)
        return torch.stack(sums), torch.stack(counts), answers

    def named_heads(self) -> list[tuple[str, Head]]:
        """Property name and head, in the order of the labels."""
        return list(self.heads.items())  # type: ignore[arg-type]

    def _total_steps(self) -> int:
        steps = self.trainer.estimated_stepping_batches  # asks for the loader, so that batches are counted below
        if self.optimization.schedule_epochs is None:
            return int(steps)
        per_epoch = math.ceil(self.trainer.num_training_batches / self.trainer.accumulate_grad_batches)
        return max(1, self.optimization.schedule_epochs * per_epoch)

    def _stop(self, value: Tensor, rows: Tensor, sums: Tensor) -> NoReturn:
        """Called by all processes where one has to stop: the others would wait for it."""
        told = gathered(None if _is_finite(value) else self._describe_non_finite(rows, sums))
        raise NonFiniteLoss(next(line for line in told if line is not None))

    def _describe_non_finite(self, rows: Tensor, sums: Tensor) -> str:
        bad = [name for name, value in zip(self.names, sums, strict=True) if not _is_finite(value)]
        data = getattr(self.trainer, "datamodule", None)
        ids = [str(row) if data is None else data.store.ids[row] for row in rows.tolist()]
        return (
            f"the loss of {', '.join(bad) or 'all properties'} is not finite at step {self.global_step}; "
            f"the batch holds the crystals {', '.join(ids)}: look for extreme labels among them, "
            "or lower optimization.learning_rate"
        )


def _labelled(features: Tensor, batch: Any, column: Tensor) -> tuple[Tensor, Any, Tensor]:
    """Features [N, D], batch and labels [B] of the crystals that have one; of the first where there is none."""
    kept = ~column.isnan()
    if bool(kept.all()):
        return features, batch, column
    if not bool(kept.any()):
        kept = torch.arange(len(kept), device=kept.device) == 0
    part, atoms = batch.part(kept)
    return features.index_select(0, atoms), part, column[kept]


def _is_finite(value: Tensor) -> bool:
    return bool(torch.isfinite(value).all())


def epoch_mean(metric: Any) -> Any:
    """What a metric says of all processes since it was last asked; a mean is NaN where there was no label."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # this process may have seen no label where others did
        value = metric.compute()
    metric.reset()
    return value
