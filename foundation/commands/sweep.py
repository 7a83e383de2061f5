"""`foundation sweep`: options of another command that lower the validation loss, searched by any number of workers."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foundation.commands.parsing import OneLineParser

if TYPE_CHECKING:
    from optuna import Study, Trial

Draw = Callable[["Trial"], str]  # the value of an option for a trial, as a word
_INTERRUPTED = "interrupted"


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
    study = _open(Path(args.journal))
    from foundation.study.runner import leaving_cleanly

    with leaving_cleanly():
        while _counted(study) < args.trials:
            _try(study, args.command, words[cut + 1 :], dict(args.vary), Path(args.journal))
    done = [trial for trial in study.trials if trial.value is not None]
    if not done:
        print("sweep: no trial has ended well", file=sys.stderr)
        return 1
    best = min(done, key=lambda trial: float(trial.value or 0))
    print(f"best of {len(done)} trials: val/loss {best.value:.6g}, {_folder(Path(args.journal), best.number)}")
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


def _counted(study: Study) -> int:
    """Trials that are done or under way; those whose worker was stopped are made up for."""
    return sum(_INTERRUPTED not in trial.user_attrs for trial in study.trials)


def _try(study: Study, command: str, options: Sequence[str], vary: dict[str, Draw], journal: Path) -> None:
    """One trial, in a process of its own.

    Raises:
        InputError: If the command refuses its options, which it would do again.
    """
    from optuna.trial import TrialState

    from datamodules.errors import InputError

    trial = study.ask()
    folder = _folder(journal, trial.number)
    chosen = [f"--{name}={draw(trial)}" for name, draw in vary.items()]
    words = [sys.executable, "-m", "foundation", command, *options, *chosen, "--out", str(folder)]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    try:
        _, told = process.communicate()
    except BaseException:
        process.terminate()
        process.wait()
        trial.set_user_attr(_INTERRUPTED, True)
        study.tell(trial, state=TrialState.FAIL)
        raise
    loss = _loss(folder) if process.returncode == 0 else None
    last = told.strip().splitlines()[-1] if told.strip() else "no message"
    if loss is None:
        study.tell(trial, state=TrialState.FAIL)
        print(f"trial {trial.number}: {' '.join(chosen)}: failed: {last}", file=sys.stderr, flush=True)
        if process.returncode == 2:
            raise InputError(f"{command}: {last.removeprefix('foundation: error: ')}")
        return
    study.tell(trial, loss)
    print(f"trial {trial.number}: {' '.join(chosen)}: val/loss {loss:.6g}", file=sys.stderr, flush=True)


def _loss(folder: Path) -> float | None:
    """The last val/loss of a run; None where nothing validated."""
    import pandas as pd

    rows: Any = pd.read_csv(folder / "metrics.csv")
    found: list[float] = rows["val/loss"].dropna().tolist() if "val/loss" in rows else []
    return found[-1] if found else None


def _folder(journal: Path, number: int) -> Path:
    return journal.with_name(f"{journal.name}-trials") / f"{number}"
