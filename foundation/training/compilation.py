"""Whether a run compiles the encoder's training step, and where compiled code is kept.

The rule of ``--compile auto``: a few training steps are timed as they are, and the run is compiled where the part
of its time that compiling saves is more than compiling costs.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

import lightning
import torch
from lightning.pytorch.callbacks import Callback, Timer
from lightning.pytorch.utilities.seed import isolate_rng

from datamodules.errors import InputError
from foundation.checkpoint import load_checkpoint
from foundation.training.module import MultiTaskModule
from foundation.training.sharded import Sharded

Asked = bool | Literal["auto"]

# Measured for the configured encoder on one otherwise idle thread: the first compilation on a machine, one whose
# code is in the cache, and the share of a training step that is saved, rounded so that a doubtful run stays eager.
COLD_SECONDS = 110.0
WARM_SECONDS = 15.0
SAVED_SHARE = 0.5

_TIMED_STEPS = 4  # the first of them warms up
_compiled_here: set[str] = set()  # by _key: later models of the same architecture share what this process compiled


def require_compiler() -> None:
    """Refuse ``--compile true`` where nothing can be compiled.

    Raises:
        InputError: If there is no C++ compiler.
    """
    missing = _missing_compiler()
    if missing is not None:
        raise InputError(f"--compile true: there is no C++ compiler {missing!r}; install it, or use --compile auto")


def choice_of(module: MultiTaskModule, asked: Asked) -> Asked:
    """Whether a module's training was compiled; what was asked for where it had no step left to train."""
    compiled = _noted(module.card)
    return asked if compiled is None else compiled


def stored_choice(resume: str | None) -> bool | None:
    """Whether the run to go on from was compiled; None for a fresh run, and where its checkpoint does not say."""
    if resume is None:
        return None
    return _noted(load_checkpoint(Path(resume)).card)


def _noted(card: dict[str, Any]) -> bool | None:
    compiled: bool | None = card.get("numerics", {}).get("compiled")
    return compiled


def pays(eager_seconds: float, cost_seconds: float) -> bool:
    """Whether compiling saves more of a run than it costs."""
    return eager_seconds * SAVED_SHARE > cost_seconds


@dataclass
class Compilation(Callback):
    """Decides before the first step whether the encoder is compiled, says so, and compiles it.

    Nothing that training depends on is touched: weights, gradients, random numbers and the order of batches are
    the same with and without the timed steps. The choice goes into the model's card.

    Attributes:
        asked: True, False or "auto".
        stored: The choice of the run that this one resumes, which "auto" obeys: compiled and eager steps differ in
            their last bits. None for a fresh run.
        runs: How many models of this architecture train one after another in this process, sharing what the first
            compiles.
    """

    asked: Asked
    stored: bool | None = None
    runs: int = 1

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Decide, compile, and note the choice in the card."""
        assert isinstance(pl_module, MultiTaskModule)
        compiles = self.asked is True
        if compiles and isinstance(trainer.strategy, Sharded):
            raise InputError("--compile true: not with --trainer.strategy fsdp2; leave one of them out")
        with isolate_rng():
            if self.asked == "auto":
                # Every process compiles or none does; the first one's clock counts.
                compiles, reason = trainer.strategy.broadcast(self._choose(trainer, pl_module))
                _say(trainer, f"compile: {'yes' if compiles else 'no'}, {reason}")
            if compiles:
                compiles = self._compile(trainer, pl_module)
        pl_module.card["numerics"] = {
            "compiled": compiles,
            "precision": str(trainer.precision),
            "matmul_precision": torch.get_float32_matmul_precision(),
        }

    def _choose(self, trainer: lightning.Trainer, module: MultiTaskModule) -> tuple[bool, str]:
        if isinstance(trainer.strategy, Sharded):
            return False, "weights are sharded"
        missing = _missing_compiler()
        if missing is not None:
            return False, f"there is no C++ compiler {missing!r} here"
        if self.stored is not None:
            return self.stored, "as in the run that this one goes on from"
        steps = trainer.estimated_stepping_batches * trainer.accumulate_grad_batches
        cost = _cost(_key(trainer, module))
        batches = _first_batches(trainer, module, _TIMED_STEPS)
        seconds = _step_seconds(trainer, module, batches[0])
        total = self.runs * _at_most_the_time_limit(trainer, steps * seconds)
        # The first step is the slowest: where even its pace is too fast to pay, no more are needed.
        if pays(total, cost) and len(batches) > 1:
            seconds = median(_step_seconds(trainer, module, batch) for batch in batches[1:])
            total = self.runs * _at_most_the_time_limit(trainer, steps * seconds)
        threads = torch.get_num_threads()
        on = f" on {threads} threads" if module.device.type == "cpu" and threads > 1 else ""
        return pays(total, cost), (
            f"{self.runs * steps:,.0f} steps of {seconds:.2g} s{on} take {_duration(total)}; compiling saves about "
            f"half of that and costs {_duration(cost) if cost else 'nothing more'}"
        )

    def _compile(self, trainer: lightning.Trainer, module: MultiTaskModule) -> bool:
        folder, key = cache_folder(), _key(trainer, module)
        # On the same batch in a fresh run and a resumed one: the sizes seen first shape the code.
        (batch,) = _first_batches(trainer, module, 1)
        module.encoder.compile(dynamic=True)
        started = time.perf_counter()
        try:
            _step_seconds(trainer, module, batch)
        except (RuntimeError, OSError) as error:
            # A process killed while it compiles leaves a torn file, and a cache that lasts would keep it for good.
            problem = (
                f"torch.compile fails here: {str(error).strip().splitlines()[0]}; if a job was killed while it "
                f"compiled, remove {folder or 'the compiler cache of torch'}"
            )
            if self.asked is True:
                raise InputError(f"--compile true: {problem}, or use --compile auto") from error
            module.encoder.compile(disable=True)
            _say(trainer, f"compile: no, {problem}")
            return False
        if key not in _compiled_here:
            _say(trainer, f"compile: took {_duration(time.perf_counter() - started)}")
        _compiled_here.add(key)
        if folder is not None:
            with suppress(OSError):  # without the mark, the next run takes this cache for a cold one
                folder.mkdir(parents=True, exist_ok=True)
                (folder / f"foundation-{key}").touch()
        return True


def cache_folder() -> Path | None:
    """Where compiled code is kept between runs: the system's temporary folder, torch's own choice, is often wiped.

    Returns:
        ``$TORCHINDUCTOR_CACHE_DIR`` where it is set, else ``foundation/inductor`` in the user's cache folder, which
        is set from here on; None, and torch's choice, where that cannot be written.
    """
    given = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    if given:
        return Path(given)
    folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "foundation" / "inductor"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    if not os.access(folder, os.W_OK):
        return None
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
    return folder


def _missing_compiler() -> str | None:
    """The compiler that torch would call, if it is not there; GPU kernels need it for their launchers."""
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    return compiler if shutil.which(compiler) is None else None


def _cost(key: str) -> float:
    if key in _compiled_here:
        return 0.0
    folder = cache_folder()
    return WARM_SECONDS if folder is not None and (folder / f"foundation-{key}").exists() else COLD_SECONDS


def _key(trainer: lightning.Trainer, module: MultiTaskModule) -> str:
    """What compiled code depends on, as a name."""
    frozen = [name for name, rate in module.rates.items() if rate == 0]
    parts = ["by blocks", str(module.encoder), frozen, torch.__version__, module.device.type, str(trainer.precision)]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _first_batches(trainer: lightning.Trainer, module: MultiTaskModule, count: int) -> list[Any]:
    """Batches of the first epoch, from a loader of their own."""
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    return [batch.to(module.device) for batch in itertools.islice(data.train_dataloader(), count)]


def _step_seconds(trainer: lightning.Trainer, module: MultiTaskModule, batch: Any) -> float:
    """Seconds of one forward and backward pass; gradients are made and dropped, nothing is updated."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    started, started_cpu = time.perf_counter(), time.process_time()
    with trainer.precision_plugin.train_step_context():
        sums, counts, _ = module.losses(batch)
        torch.autograd.grad(module.weighting(sums, counts), parameters, allow_unused=True)
    if module.device.type == "cuda":
        torch.cuda.synchronize(module.device)
        return time.perf_counter() - started
    # Other work on the machine would slow a compilation as much as it slows this step, so it does not count.
    return min(time.perf_counter() - started, time.process_time() - started_cpu)


def _at_most_the_time_limit(trainer: lightning.Trainer, seconds: float) -> float:
    limits = [callback.time_remaining() for callback in trainer.callbacks if isinstance(callback, Timer)]  # type: ignore[attr-defined]
    return min([seconds, *(limit for limit in limits if limit is not None)])


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"


def _say(trainer: lightning.Trainer, line: str) -> None:
    if trainer.is_global_zero:
        print(line, file=sys.stderr, flush=True)
