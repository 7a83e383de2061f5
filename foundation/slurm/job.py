"""The Slurm job that this process belongs to, as its environment and `scontrol` tell."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass

from foundation.slurm.submission import seconds_of

_ALIVE = ("RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT")


@dataclass(frozen=True)
class Job:
    """A job of Slurm.

    Attributes:
        id: What `scontrol` calls it: the number, and for a task of an array ARRAY_TASK. The number alone would mean
            the whole array for one of its tasks.
        restarts: How often Slurm has started it again.
        cluster: Where; another one may have a job of the same number.
    """

    id: str
    restarts: int
    cluster: str = ""

    @classmethod
    def here(cls) -> Job | None:
        """The job of this process; None outside of Slurm."""
        number = os.environ.get("SLURM_JOB_ID")
        if not number:
            return None
        array, task = (os.environ.get(f"SLURM_ARRAY_{name}") for name in ("JOB_ID", "TASK_ID"))
        return cls(
            f"{array}_{task}" if array and task else number,
            int(os.environ.get("SLURM_RESTART_COUNT") or 0),
            os.environ.get("SLURM_CLUSTER_NAME", ""),
        )

    def requeue(self) -> str | None:
        """Ask Slurm to start it again, which ends it here.

        Returns:
            None where it will be started again; otherwise why not, in a few words.
        """
        if shutil.which("scontrol") is None:
            return "there is no scontrol on this node"
        if self._is_cancelled():
            return "the job was cancelled"
        done = _scontrol("requeue", self.id)
        return None if done.returncode == 0 else (done.stderr or done.stdout).strip().splitlines()[-1]

    def is_over(self) -> bool:
        """Whether this start of it is known to be over; False where Slurm cannot tell."""
        if shutil.which("scontrol") is None or self.cluster != os.environ.get("SLURM_CLUSTER_NAME", ""):
            return False
        shown = _scontrol("show", "job", "-o", self.id)
        fields = dict(re.findall(r"\b(JobState|Restarts)=(\S+)", shown.stdout))
        if not fields:
            return "Invalid job id" in shown.stderr  # Slurm has forgotten it
        return int(fields["Restarts"]) > self.restarts or fields["JobState"] not in _ALIVE

    def _is_cancelled(self) -> bool:
        """Whether somebody wants to be rid of it: requeueing would bring it back to life.

        A job that is over while its processes still run is shown as COMPLETING, whatever ended it; unless that was its
        time limit, it was cancelled, or Slurm preempts it and starts it again by itself.
        """
        shown = _scontrol("show", "job", "-o", self.id).stdout
        fields = dict(re.findall(r"\b(JobState|RunTime|TimeLimit)=(\S+)", shown))
        if fields.get("JobState") not in ("COMPLETING", "CANCELLED"):
            return False
        limit = fields.get("TimeLimit", "UNLIMITED")
        return not limit[0].isdigit() or seconds_of(fields["RunTime"]) < seconds_of(limit)


def _scontrol(*words: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(["scontrol", *words], capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(words, 1, "", "scontrol did not answer within a minute")
