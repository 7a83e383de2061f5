"""Weights & Biases: one run per training run, offline where nobody is logged in or nobody answers."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from lightning.pytorch.loggers import WandbLogger

from foundation.process import is_first_process
from foundation.tracking.guard import Guard, GuardedLogger, first_line
from foundation.tracking.identity import run_name
from foundation.tracking.server import NAME, UNSENT, why_unreachable
from foundation.tracking.uploading import Uploading

T = TypeVar("T")

PROJECT = "foundation"

_INIT_SECONDS = 20
_FINISH_SECONDS = 300  # W&B itself would wait for ever, on a machine that is paid for
_FLUSH_SECONDS = 1.0  # a kill takes what was recorded since, which may be of before the checkpoint; W&B's own is 15 s


class Tracker(GuardedLogger):
    """The record of one run; where it fails, that is said once and training goes on.

    Args:
        logger: Lightning's logger, its run begun.
        folder: The run's folder.
    """

    def __init__(self, logger: WandbLogger, folder: Path) -> None:
        self.run: Any = logger.experiment
        self.place = Path(self.run.dir).parent
        self.folder = folder
        self.uploading = None if self.run.offline else Uploading(Path(self.run.settings.log_internal))
        self._told = False
        super().__init__(logger, Guard(NAME, self.place))

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Hand them on, and tell where nothing arrives."""
        super().log_metrics(metrics, step)
        if self.uploading is not None and not self._told and not self.guard.broken:
            problem = self.uploading.problem()
            if problem is not None:
                self._unsent(f"{problem}; training goes on and is recorded here")

    def record(self, call: Callable[..., T], *arguments: Any, **named: Any) -> T | None:
        """Call something of W&B's with what it copies kept inside the run's folder, not in the home directory."""
        with _copies_in(self.folder / "wandb"):
            return self.guard.attempt(call, *arguments, **named)

    def finish(self, exit_code: int = 0) -> None:
        """Close the record. Nothing is recorded afterwards."""
        self.guard.attempt(self.guard.probe)
        try:
            self.run.finish(exit_code=exit_code)
        except TimeoutError:
            self._unsent(f"does not take the rest in {_FINISH_SECONDS} s")
        except Exception as error:
            if not self.guard.broken:
                self.guard.give_up(error)
            _forget_service()
        else:
            refused = self.uploading.given_up() if self.uploading is not None else None
            if refused is not None:
                self._unsent(refused)
            elif self._told:
                (self.place / UNSENT).unlink(missing_ok=True)
                _say(f"{NAME}: all is uploaded after all")

    def _unsent(self, problem: str) -> None:
        """Say once that not all is uploaded, and keep it for a later upload, even from a run that is killed."""
        if self._told:
            return
        self._told = True
        _say(f"{NAME} {problem}; {_later(self.folder)}")
        with suppress(OSError):
            (self.place / UNSENT).touch()

    @contextmanager
    def failing(self, unless: type[Exception]) -> Iterator[None]:
        """Close the record where the body raises: as that of a failed run, unless it raises what was expected."""
        try:
            yield
        except BaseException as error:
            self.finish(exit_code=int(not isinstance(error, unless)))
            raise


def wandb_logger(
    mode: str, folder: Path, group: str | None, config: Mapping[str, Any], run_id: str | None = None, job: str = "train"
) -> Tracker | None:
    """The record of a run, None where mode is "off", where it cannot be begun, or in another than the first process.

    Args:
        mode: "offline", "online" or "off".
        folder: The run's folder; records are kept under it.
        group: Ties runs together.
        config: Recorded with the run.
        run_id: Of the run to begin or to go on with; a fresh one by default.
        job: What kind of run it is.
    """
    if mode == "off" or not is_first_process():
        return None
    if mode == "online":
        problem = why_unreachable()
        if problem is None:
            try:
                return _begin("online", folder, group, config, run_id, job)
            except Exception as error:
                problem = first_line(error)
                _forget_service()  # it would not begin a run again that it could not begin
        _say(f"{NAME}: {problem}; recording offline, {_later(folder)}")
    try:
        return _begin("offline", folder, group, config, run_id, job)
    except Exception as error:
        _say(f"warning: {NAME} fails ({first_line(error)}); training goes on without it")
        return None


def _begin(
    mode: str, folder: Path, group: str | None, config: Mapping[str, Any], run_id: str | None, job: str
) -> Tracker:
    import wandb

    # Older versions do not know it.
    interval = "x_transaction_log_flush_interval"
    flushing: dict[str, Any] = {interval: _FLUSH_SECONDS} if interval in wandb.Settings.model_fields else {}
    settings = wandb.Settings(
        init_timeout=_INIT_SECONDS,
        finish_timeout=_FINISH_SECONDS,
        finish_timeout_raises=True,
        console="off",
        silent=True,
        # What W&B records of a checkout holds code that is not committed, and addresses that may hold passwords.
        disable_git=True,
        disable_code=True,
        **flushing,
    )
    wandb.setup()
    wandb.termsetup(settings, None)  # or W&B says in its own words, and again and again, what is told once here
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        name=run_name(folder),
        group=group,
        dir=folder.resolve(),  # W&B's own process may have been started in another folder
        id=run_id,
        resume="allow",
        mode=mode,  # type: ignore[arg-type]
        job_type=job,
        config=dict(config),
        settings=settings,
        reinit="finish_previous",
    )
    run.define_metric("trainer/global_step")
    run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    return Tracker(WandbLogger(experiment=run), folder)


def _forget_service() -> None:
    """Let the next run of this process begin with a new process of W&B's, where the last one died."""
    import wandb

    with suppress(Exception):
        wandb.teardown(exit_code=1)


@contextmanager
def _copies_in(place: Path) -> Iterator[None]:
    if "WANDB_DATA_DIR" in os.environ:
        yield
        return
    os.environ["WANDB_DATA_DIR"] = str(place.resolve())
    try:
        yield
    finally:
        del os.environ["WANDB_DATA_DIR"]


def _later(folder: Path) -> str:
    return f"`foundation wandb sync {folder}` uploads it later"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
