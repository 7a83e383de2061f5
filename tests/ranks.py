"""Training commands in processes of their own that can be signalled and killed, alone or as ranks of one run.

They are forked from a server that has imported everything already, so a start costs a fraction of a second. Every
training step draws noise from each generator of random numbers, so that weights tell whether these were restored, and
writes down which crystals it saw.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

from launching import free_port

CONTEXT = multiprocessing.get_context("forkserver")


@contextmanager
def warm_server() -> Iterator[None]:
    """A server that has imported everything; there is one in a process, which others use with less in it."""
    forkserver._forkserver._stop()  # type: ignore[attr-defined]
    CONTEXT.set_forkserver_preload(["foundation.commands.pretrain", "foundation.commands.adapt", "ranks"])
    try:
        yield
    finally:
        forkserver._forkserver._stop()  # type: ignore[attr-defined]


@dataclass
class Moment:
    """When a process sends itself a signal: at the n-th call of something, counted from 1.

    Attributes:
        what: "start" (before the command is parsed), "build" (of the module), "train", "backward" (of a batch whose
            vote is on its way), "validate", "save", "record" (a part of a file that is being saved), or after the
            last step "calibrate" or "evaluate".
        call: Which call.
        number: The signal.
        rank: Of which process.
        times: How many of them.
    """

    what: str
    call: int = 1
    number: int = signal.SIGUSR1
    rank: int = 0
    times: int = 1


class Ranks:
    """One start of a command, in one process or in several.

    Args:
        words: The command line.
        out: Folder for what they print, in ``rank{i}.txt``, and the crystals they saw, in ``seen{i}.txt``.
        count: How many processes.
        env: Variables of the environment.
        moments: Signals that they send themselves.
    """

    def __init__(
        self,
        words: Sequence[object],
        out: Path,
        count: int = 1,
        env: Mapping[str, str] | None = None,
        moments: Sequence[Moment] = (),
    ) -> None:
        out.mkdir(parents=True, exist_ok=True)
        shared = {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", "MPLBACKEND": "agg", **(env or {})}
        if count > 1:
            words = [*words, "--trainer.devices", count, "--trainer.strategy", "ddp"]
            shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "GLOO_SOCKET_IFNAME": "lo"}
        self.processes = []
        for rank in range(count):
            own = shared | ({"RANK": str(rank), "LOCAL_RANK": str(rank)} if count > 1 else {})
            process = CONTEXT.Process(target=_run, args=([str(word) for word in words], out, rank, own, list(moments)))
            process.start()
            self.processes.append(process)
        self.out = out

    def signal(self, number: int, ranks: Sequence[int] | None = None) -> None:
        """Send a signal to some or all."""
        for process in [self.processes[rank] for rank in ranks] if ranks is not None else self.processes:
            assert process.pid is not None
            os.kill(process.pid, number)

    def wait(self, seconds: float = 120) -> list[int]:
        """Exit codes."""
        until = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0.1, until - time.monotonic()))
        hung = [process for process in self.processes if process.is_alive()]
        for process in hung:
            process.kill()
            process.join()
        assert not hung, f"{len(hung)} processes hang: {self.printed()}"
        return [int(process.exitcode or 0) for process in self.processes]

    @property
    def running(self) -> bool:
        """Whether any of them is."""
        return any(process.is_alive() for process in self.processes)

    def printed(self, rank: int = 0) -> str:
        """What a process has printed, all its starts together."""
        return (self.out / f"rank{rank}.txt").read_text()


def seen(out: Path, count: int = 1) -> list[list[str]]:
    """The lines ``epoch batch rows`` of each process, over all starts."""
    files = [out / f"seen{rank}.txt" for rank in range(count)]
    return [file.read_text().splitlines() if file.exists() else [] for file in files]


@contextmanager
def right_behind_the_last_save(out: Path, whole: Path, last: Path, count: int = 1) -> Iterator[None]:
    """What is seen in the body begins with the batch behind the last save, and goes on as in a run never disturbed.

    Args:
        out: Folder of the crystals seen.
        whole: That of the other run.
        last: Its last checkpoint, if it has one yet.
        count: How many processes there are.
    """
    from foundation.resuming import step_of

    step = step_of(str(last)) if last.is_file() else 0
    begun = [len(lines) for lines in seen(out, count)]
    yield
    for passed, lines, expected in zip(begun, seen(out, count), seen(whole, count), strict=True):
        assert lines[passed:] == expected[step : step + len(lines) - passed]


def killed_during_imports(words: Sequence[object]) -> int:
    """The exit code of a command that is killed as soon as it has imported the first part of torch."""
    command = [sys.executable, "-X", "importtime", "-m", "foundation", *map(str, words)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert any(" torch." in line for line in process.stderr)
        process.kill()
    return process.returncode


def _run(words: list[str], out: Path, rank: int, env: dict[str, str], moments: list[Moment]) -> None:
    handle = os.open(out / f"rank{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115 - for as long as it lives
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115 - for as long as it lives
    os.environ.update(env)
    watch(out / f"seen{rank}.txt", rank, moments)
    from foundation.cli import main

    sys.exit(main(words))


def to_itself(number: int) -> None:
    """Send this process a signal."""
    os.kill(os.getpid(), number)


def watch(file: Path, rank: int, moments: Sequence[Moment], send: Callable[[int], None] = to_itself) -> None:
    """Add the noise, the record of what is seen, and the signals, to this process."""
    import numpy as np
    import torch

    from foundation import plots
    from foundation.commands import pretrain
    from foundation.training import run
    from foundation.training.module import MultiTaskModule

    calls: dict[str, int] = {}
    pause = float(os.environ.get("STEP_SECONDS", "0"))

    def passes(what: str) -> None:
        calls[what] = calls.get(what, 0) + 1
        for moment in moments:
            if (moment.what, moment.call, moment.rank) == (what, calls[what], rank):
                for _ in range(moment.times):
                    send(moment.number)

    def before(owner: Any, name: str, what: str) -> None:
        plain = getattr(owner, name)

        def called(*arguments: Any, **named: Any) -> Any:
            passes(what)
            return plain(*arguments, **named)

        setattr(owner, name, called)

    finish = MultiTaskModule.finish_step

    def noisy(self: Any, batch: Any, *losses: Any) -> Any:
        time.sleep(pause)
        index = self.trainer.fit_loop.epoch_loop.batch_idx
        with file.open("a") as seen_file:
            seen_file.write(f"{self.trainer.current_epoch} {index} {batch.row.tolist()}\n")
        passes("train")
        noise = 0.1 * (random.random() + float(np.random.rand()) + float(torch.rand(())))
        if os.environ.get("NAN_ON") == str(rank) and calls["train"] == 2:
            sums, counts, total = losses
            losses = (sums * torch.nan, counts, total * torch.nan)
        return (1 + noise) * finish(self, batch, *losses)

    MultiTaskModule.finish_step = noisy  # type: ignore[method-assign]
    plots.save = lambda *_: None  # slow, and nothing here depends on it
    before(MultiTaskModule, "backward", "backward")
    before(MultiTaskModule, "validation_step", "validate")
    before(torch, "save", "save")
    before(torch._C.PyTorchFileWriter, "write_record", "record")
    before(MultiTaskModule, "__init__", "build")
    before(pretrain, "parser", "start")
    before(run, "calibrate", "calibrate")
    before(run, "evaluate", "evaluate")
