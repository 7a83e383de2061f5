"""`foundation sweep`: options of another command that lower the validation loss, searched by any number of workers."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foundation.commands.parsing import OneLineParser
from foundation.process import is_first_process
from foundation.stopping import Preempted, asked_to_stop, held_signals, note

if TYPE_CHECKING:
    from optuna import Study, Trial

Draw = Callable[["Trial"], str]  # the value of an option for a trial, as a word
POLL = 0.5  # seconds
# Exit codes of what was signalled, whether it could save itself or not.
_STOPPED = {code for number in (signal.SIGUSR1, signal.SIGTERM) for code in (128 + number, -number)}


def parser() -> OneLineParser:
    """The options of the command."""
    made = OneLineParser(
        prog="foundation sweep",
        usage="foundation sweep {pretrain,adapt} --journal FILE --vary NAME=RANGE ... -- OPTIONS",
        description="Run a command again and again with other options, and look for the lowest val/loss. Workers that "
        "name the same journal share their trials; a journal that is there already goes on. Needs optuna.",
    )
    made.add_argument("command", choices=("pretrain", "adapt"), help="what is run")
    made.add_argument("--journal", required=True, metavar="FILE", help="file of all trials; runs are kept beside it")
    made.add_argument("--trials", type=int, default=20, help="trials of all workers together (%(default)s)")
    made.add_argument(
        "--vary",
        action="append",
        required=True,
        type=varied,
        metavar="NAME=RANGE",
        help="LOW:HIGH, LOW:HIGH:log, or values by commas; whole numbers where both ends are",
    )
    made.add_argument("options", nargs="*", help="behind --: options of the command that stay")
    return made


def main(words: Sequence[str]) -> int:
    """Run the command."""
    words = list(words)
    cut = words.index("--") if "--" in words else len(words)
    args = parser().parse_args(words[:cut])
    journal = Path(args.journal)
    with held_signals():
        from foundation.commands.sweep_trials import counted, folder_of, give_back_lost

        study = _open(journal)
        note(signal.SIGUSR1)
        note(signal.SIGTERM)
        give_back_lost(study, journal)
        while counted(study) < args.trials:
            number = asked_to_stop()
            if number is not None:
                raise _farewell(signal.Signals(number).name, 128 + number)
            _try(study, args.command, words[cut + 1 :], dict(args.vary), journal)
            give_back_lost(study, journal)
    done = [trial for trial in study.trials if trial.value is not None]
    if not done:
        print("sweep: no trial has ended well", file=sys.stderr)
        return 1
    best = min(done, key=lambda trial: float(trial.value or 0))
    print(f"best of {len(done)} trials: val/loss {best.value:.6g}, {folder_of(journal, best)}")
    for name, value in best.params.items():
        print(f"  --{name} {value}")
    return 0


def varied(text: str) -> tuple[str, Draw]:
    """An option and how its value is drawn, from ``NAME=RANGE``."""
    name, equals, given = text.lstrip("-").partition("=")
    ends = given.split(":")
    logarithmic = ends[-1] == "log"
    ends = ends[:-1] if logarithmic else ends
    if not (name and equals and given):
        raise argparse.ArgumentTypeError(f"{text}: write NAME=LOW:HIGH, NAME=LOW:HIGH:log or NAME=one,other")
    if len(ends) != 2:
        return name, lambda trial: str(trial.suggest_categorical(name, given.split(",")))
    try:
        low, high = (int(end) for end in ends)
        return name, lambda trial: str(trial.suggest_int(name, low, high, log=logarithmic))
    except ValueError:
        pass
    try:
        least, most = (float(end) for end in ends)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: {given} is no range of numbers") from None
    return name, lambda trial: repr(trial.suggest_float(name, least, most, log=logarithmic))


def _open(journal: Path) -> Study:
    from datamodules.errors import InputError

    try:
        import optuna
        from optuna.storages.journal import JournalFileBackend
    except ImportError as error:
        raise InputError("sweep: needs optuna: pip install 'crystal-foundation[sweep]'") from error
    journal.parent.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(journal)))
    return optuna.create_study(study_name="sweep", storage=storage, direction="minimize", load_if_exists=True)


def _try(study: Study, command: str, options: Sequence[str], vary: dict[str, Draw], journal: Path) -> None:
    """One trial, in a process of its own.

    Raises:
        InputError: If the command refuses its options, which it would do again.
    """
    from optuna.trial import TrialState

    from datamodules.errors import InputError
    from foundation.commands.sweep_trials import folder_of, give_back, goes_on, under_way

    trial = study.ask()
    folder = folder_of(journal, trial)
    with under_way(trial, journal):
        chosen = [f"--{name}={draw(trial)}" for name, draw in vary.items()]
        words = [sys.executable, "-m", "foundation", command, *options, *chosen, "--out", str(folder)]
        try:
            code, told = _run([*words, "--resume", "auto"] if goes_on(trial) else words)
        except BaseException:
            give_back(study, trial)
            raise
        if code in _STOPPED or (code != 0 and asked_to_stop() is not None):
            give_back(study, trial)
            return
        loss = _loss(folder) if code == 0 else None
        last = told.strip().splitlines()[-1] if told.strip() else "no message"
        if loss is not None:
            study.tell(trial, loss)
            print(f"trial {trial.number}: {' '.join(chosen)}: val/loss {loss:.6g}", file=sys.stderr, flush=True)
            return
        study.tell(trial, state=TrialState.FAIL)
        print(f"trial {trial.number}: {' '.join(chosen)}: failed: {last}", file=sys.stderr, flush=True)
        if code == 2:
            raise InputError(f"{command}: {last.removeprefix('foundation: error: ')}")


def _run(words: Sequence[str]) -> tuple[int, str]:
    """Run a process to its end, or, where this one is asked to stop, until it has saved itself.

    It knows nothing of this one's job: it would have that started again, and take itself for one of its tasks.

    Returns:
        Its exit code, and what it has said.
    """
    own = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    env = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_") and key not in own}
    process = subprocess.Popen(words, env=env, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    asked = False
    try:
        while True:
            try:
                told = process.communicate(timeout=POLL)[1]
                return process.returncode, told
            except subprocess.TimeoutExpired:
                if not asked and asked_to_stop() is not None:
                    asked = True
                    process.terminate()
    except BaseException:
        process.terminate()
        process.wait()
        raise


def _farewell(by: str, code: int) -> Preempted:
    """Have the job of this worker started again, and say what becomes of it."""
    from foundation.slurm.job import Job

    job = Job.here()
    if job is None:
        return Preempted(f"stopped by {by}; go on with the same command", code)
    if not is_first_process():
        return Preempted("", 0)
    print(f"foundation: stopped by {by}; having job {job.id} started again", file=sys.stderr, flush=True)
    reason = job.requeue()
    return Preempted("", 0) if reason is None else Preempted(f"not requeued, {reason}; submit it again", code)


def _loss(folder: Path) -> float | None:
    """The last val/loss of a run; None where nothing validated."""
    import pandas as pd

    file = folder / "metrics.csv"
    rows: Any = pd.read_csv(file) if file.is_file() else {}
    found: list[float] = rows["val/loss"].dropna().tolist() if "val/loss" in rows else []
    return found[-1] if found else None
