"""The `foundation` command with the noise and the record of ``ranks.watch``, as a job's tasks run it."""

import json
import os
import sys
from pathlib import Path

from ranks import Moment, watch

from foundation.cli import main
from foundation.stopping import held_signals

if __name__ == "__main__":
    with held_signals():  # what is imported here the command would import behind its own hold
        rank, start = (int(os.environ.get(name, "0")) for name in ("SLURM_PROCID", "SLURM_RESTART_COUNT"))
        starts = json.loads(os.environ["MOMENTS"])
        moments = [Moment(**moment) for moment in starts[start]] if start < len(starts) else []
        watch(Path(os.environ["SEEN"]) / f"seen{rank}.txt", rank, moments)
        code = main()
    sys.exit(code)
