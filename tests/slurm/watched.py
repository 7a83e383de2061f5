"""The `foundation` command with the noise and the record of ``ranks.watch``, as a job's tasks run it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from ranks import Moment, to_itself, watch

from foundation.cli import main
from foundation.process import Ending
from foundation.stopping import asked_to_stop, held_signals


def by_slurm(number: int) -> None:
    """Have Slurm signal all tasks of the job, and wait until it has; a kill is for this one alone."""
    if number == signal.SIGKILL:
        to_itself(number)
    name = signal.Signals(number).name
    subprocess.run(["scancel", f"--signal={name}", os.environ["SLURM_JOB_ID"]], check=True)
    while asked_to_stop() is None:
        time.sleep(0.01)


if __name__ == "__main__":
    ending = Ending()
    with held_signals():  # what is imported here the command would import behind its own hold
        rank, start = (int(os.environ.get(f"SLURM_{name}", "0")) for name in ("PROCID", "RESTART_COUNT"))
        moments = [Moment(**fields) for fields in json.loads(os.environ["MOMENTS"]).get(str(start), [])]
        watch(Path(os.environ["SEEN"]) / f"seen{rank}.txt", rank, moments, by_slurm)
        ending.code = main()
    sys.exit(ending.code)
