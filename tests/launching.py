"""Two processes of one run, as torchrun would start them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def launch_two(script: str, *words: object) -> None:
    """Run a file of this folder in two processes at once; both must succeed."""
    port = str(free_port())
    here = Path(__file__).parent
    launched = []
    for rank in "01":
        names = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        names |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
        environment = {**os.environ, **names, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(here.parent)}
        command = [sys.executable, str(here / script), *map(str, words)]
        launched.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    try:
        errors = [process.communicate(timeout=600)[1] for process in launched]
    finally:
        for process in launched:
            process.kill()  # where the other one has failed or was too slow
    assert [process.returncode for process in launched] == [0, 0], "\n".join(errors)[-3000:]
