"""From a pretrained encoder to the module that an adaptation trains."""

from __future__ import annotations

from dataclasses import dataclass

import lightning

from datamodules.datamodule import CrystalDataModule
from datamodules.errors import InputError
from foundation.checkpoint import Checkpoint, build_module, make_card
from foundation.frozen import frozen_blocks, known_features
from foundation.kindred import begin_like_kindred
from foundation.strategies.base import AdaptationStrategy
from foundation.training.denoising import AT_REST, Displacements, module_kind
from foundation.training.module import MultiTaskModule
from foundation.training.optimization import Optimization
from foundation.training.scaling import check_shape, check_varied, fit_scalers, tell_unreachable
from foundation.training.spec import HeadSpec, ModelSpec
from foundation.transfer import encoder_of, transfer, transfer_heads


@dataclass(frozen=True)
class Adaptation:
    """What is adapted, and how.

    Attributes:
        spec: Architecture: the encoder and the head of the property, before others that stay.
        optimization: How weights are changed.
        strategy: Which parts of the encoder train.
        pretrained: Where the encoder's weights come from; None for fresh ones.
        displacements: How atoms are displaced while training.
        cache: Whether what a frozen part of the encoder makes of the crystals is computed only once.
    """

    spec: ModelSpec
    optimization: Optimization
    strategy: AdaptationStrategy
    pretrained: Checkpoint | None
    displacements: Displacements = AT_REST
    cache: bool = True

    @classmethod
    def of(
        cls,
        head: HeadSpec,
        encoder: dict[str, object],
        optimization: Optimization,
        strategy: AdaptationStrategy,
        pretrained: Checkpoint | None,
        displacements: Displacements = AT_REST,
    ) -> Adaptation:
        """The adaptation of a checkpoint, or of a fresh encoder, by a strategy.

        Args:
            head: The new head.
            encoder: Arguments of the encoder. A checkpoint has its own, which those given here must not contradict,
                but for what computes its products.
            optimization: How weights are changed.
            strategy: The strategy.
            pretrained: The checkpoint.
            displacements: How atoms are displaced while training.

        Raises:
            InputError: If the strategy needs what the checkpoint does not have, or does not fit its encoder, or the
                arguments given for the encoder differ from the checkpoint's.
        """
        name = head.property.name
        heads = {name: head}
        if pretrained is not None:
            encoder, old = encoder_of(pretrained, encoder), pretrained.spec.heads
            if strategy.keeps_head:
                if name not in old:
                    raise InputError(f"{pretrained.path} has no head for {name} to keep; it has {', '.join(old)}")
                heads = {name: old[name]}
            if strategy.keeps_other_heads:
                heads |= {other: spec for other, spec in old.items() if other != name}
        spec = ModelSpec(encoder, heads)
        strategy.rates(list(spec.build_encoder().stages()))  # refuses what does not fit this encoder
        return cls(spec, optimization, strategy, pretrained, displacements)

    def module(self, data: CrystalDataModule, seed: int) -> tuple[MultiTaskModule, list[str]]:
        """Build the module that trains, and tell the data what it needs not compute again.

        Args:
            data: The data, its property chosen; the head's scale comes from its training labels.
            seed: Seed of the weights that are new, and of everything random that follows.

        Returns:
            The module, and what in it was kept, is new, was dropped and is frozen, one line each.
        """
        lightning.seed_everything(seed, verbose=False)
        data.order_seed = seed
        data.known = data.rehearsal = None
        name = next(iter(self.spec.heads))
        stages = list(self.spec.build_encoder().stages())
        rates = self.strategy.rates(stages)
        module = build_module(
            self.spec,
            self.optimization,
            rates=rates,
            kind=module_kind(self.displacements, seed),
            thaws=self.strategy.thaws(stages),
        )
        source, kept_heads = None, []
        if self.pretrained is not None and self.strategy.starts_from_pretrained:
            lines = transfer(module.encoder, self.pretrained)
            kept_heads = [head for head in self.spec.heads if head != name or self.strategy.keeps_head]
            lines += transfer_heads(module.heads, self.pretrained, kept_heads)
            card = self.pretrained.card
            source = {"path": str(self.pretrained.path), "data": card["data"], "run": card.get("run")}
            module.seen = self.pretrained.seen
        else:
            lines = ["new: the whole encoder"]
        if name not in kept_heads:
            lines.append(f"new: a head for {name}")
            check_varied(name, data)
            fit_scalers(module, data)
            if source is not None and self.pretrained is not None:
                lines[-1] += begin_like_kindred(module, name, self.pretrained, data)
        else:
            check_shape(dict(module.named_heads())[name], data.training_labels(name)[1], data)
            tell_unreachable(module, data)
        frozen = [stage for stage, rate in rates.items() if rate == 0]
        lines.append(f"frozen: {', '.join(frozen) or 'nothing'}")
        module.card = make_card(self.spec, module, data, source)
        self.strategy.prepare(module, data, self.pretrained)
        blocks = frozen_blocks(module.encoder, rates)
        at_rest = self.displacements.share == 0  # what a frozen part makes of displaced atoms is new in every step
        if self.cache and at_rest and blocks is not None and data.rehearsal is None:
            edges = any(head.needs_edges for _, head in module.named_heads())
            data.known = known_features(module.encoder, blocks, data, edges)
        return module.train(), lines
