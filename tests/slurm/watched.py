"""The `foundation` command with the noise and the record of ``ranks.watch``, as a job's tasks run it."""

import os
import sys
from pathlib import Path

from ranks import watch

from foundation.cli import main
from foundation.stopping import held_signals

if __name__ == "__main__":
    with held_signals():  # what is imported here the command would import behind its own hold
        rank = int(os.environ.get("SLURM_PROCID", "0"))
        watch(Path(os.environ["SEEN"]) / f"seen{rank}.txt", rank, [])
        code = main()
    sys.exit(code)
