"""Which trials of a sweep count, and which go on because their worker was stopped or is gone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from foundation.slurm.job import Job
from foundation.study.locks import held, release_dead

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

_GOES_ON = "goes on"  # the number of the trial whose folder a trial goes on in
_JOB = "job"


def counted(study: Study) -> int:
    """Runs that have ended by themselves, well or not, or are under way; a run that goes on counts once."""
    from optuna.trial import TrialState

    last = {trial.user_attrs.get(_GOES_ON, trial.number): trial.state for trial in study.get_trials(deepcopy=False)}
    return sum(state != TrialState.WAITING for state in last.values())


def folder_of(journal: Path, trial: Trial | FrozenTrial) -> Path:
    """Where the run of a trial is kept: that of the trial it goes on with, if there is one."""
    return _runs(journal) / f"{trial.user_attrs.get(_GOES_ON, trial.number)}"


def goes_on(trial: Trial) -> bool:
    """Whether it goes on with one that was stopped."""
    return _GOES_ON in trial.user_attrs


@contextmanager
def under_way(trial: Trial, journal: Path) -> Iterator[None]:
    """Note who runs a trial, so that others can tell when that process is gone."""
    job = Job.here()
    if job is not None:
        trial.set_user_attr(_JOB, asdict(job))
    with held(_lock(journal, trial)):
        yield


def give_back(study: Study, trial: Trial | FrozenTrial) -> None:
    """End a trial that was stopped, and let the next free worker go on with it."""
    from optuna.trial import TrialState

    try:
        study.tell(trial.number, state=TrialState.FAIL)
    except ValueError:  # another worker has seen it too, or it has ended after all
        return
    study.enqueue_trial(trial.params, user_attrs={_GOES_ON: trial.user_attrs.get(_GOES_ON, trial.number)})


def give_back_lost(study: Study, journal: Path) -> None:
    """Do so with trials whose process was killed, or whose job was started again or is over."""
    from optuna.trial import TrialState

    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        job = trial.user_attrs.get(_JOB)
        if release_dead(_lock(journal, trial)) or (job is not None and Job(**job).is_over()):
            give_back(study, trial)


def _lock(journal: Path, trial: Trial | FrozenTrial) -> Path:
    return _runs(journal) / f"{trial.number}.lock"


def _runs(journal: Path) -> Path:
    return journal.with_name(f"{journal.name}-trials")
