"""The processes of a comparison: which interpreter runs which model, and what it is told."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from datamodules.errors import InputError

PEERS = ("nequip", "alignn")
OURS, OURS_SEEDS, OURS_FOLDS = "ours", "ours_seeds", "ours_folds"
_MODULES = {model: f"foundation.benchmarks.{model}" for model in (OURS, OURS_SEEDS, OURS_FOLDS)}
_TRAINING = ("foundation/training/muon.py", "foundation/training/optimization.py")
_OURS = ("foundation/encoder", "heads", "datamodules", *_TRAINING, "foundation/benchmarks/ours.py")
_BLEND = ("foundation/auto/folds.py", "foundation/blending.py", "foundation/classical")
_SOURCES = {
    OURS: _OURS,
    OURS_SEEDS: (*_OURS, "foundation/benchmarks/ours_seeds.py"),
    OURS_FOLDS: (*_OURS, *_BLEND, "foundation/benchmarks/ours_folds.py"),
}
_HERE = Path(__file__).parent


def parse_peers(words: list[str]) -> dict[str, str]:
    """Interpreters of the peers from ``nequip=PYTHON`` words.

    Raises:
        InputError: For another name, or an interpreter that is not there.
    """
    found = {}
    for word in words:
        name, _, python = word.partition("=")
        if name not in PEERS or not python:
            raise InputError(f"--peers {word}: write NAME=PYTHON with a name of {', '.join(PEERS)}")
        if not os.access(python, os.X_OK) or Path(python).is_dir():
            raise InputError(f"--peers {word}: there is no interpreter {python}")
        found[name] = str(Path(python).absolute())  # not resolved: an environment's interpreter is a link
    return found


def absent(peers: Mapping[str, str]) -> list[str]:
    """One line for every peer that was not given."""
    return [
        f"{name} is absent: install it as foundation/benchmarks/peers/README.md says, then --peers {name}=PYTHON"
        for name in PEERS
        if name not in peers
    ]


def code_hash(model: str) -> str:
    """Hash of the sources that a model's result depends on; results of other code do not count."""
    places = [_HERE / "peers", *(_HERE.parent.parent / place for place in _SOURCES.get(model, ()))]
    files = [file for place in places for file in ([place] if place.is_file() else sorted(place.glob("*.py")))]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]


def environment(threads: int, device: str, cache: Path) -> dict[str, str]:
    """Variables of a contestant's process.

    Compilers start from an empty cache; where processor time counts, they run inside the process, one at a time.
    """
    made = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "TORCHINDUCTOR_CACHE_DIR": str(cache),
    }
    return {**made, "TORCHINDUCTOR_COMPILE_THREADS": "1"} if device == "cpu" else made


def start(
    model: str, peers: Mapping[str, str], job: Mapping[str, Any], cache: Path, log: IO[str]
) -> subprocess.Popen[str]:
    """Start a contestant's process for a job, which it waits for."""
    if model in _MODULES:
        command, folder = [sys.executable, "-m", _MODULES[model]], _HERE.parent.parent
    else:
        command, folder = [peers[model], "-m", f"peers.{model}"], _HERE
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment(int(job["threads"]), job["device"], cache),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
    )


def run_job(model: str, peers: Mapping[str, str], job: Mapping[str, Any], log_file: Path) -> dict[str, Any] | None:
    """Do one job in its own process; None if it failed, and ``log_file`` says why."""
    log_file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="foundation-inductor-") as cache, log_file.open("w") as log:
        process = start(model, peers, job, Path(cache), log)
        printed, _ = process.communicate(json.dumps(job) + "\n")
    return last_result(printed) if process.returncode == 0 else None


def last_result(printed: str) -> dict[str, Any] | None:
    """The last line of JSON among whatever a library printed."""
    for line in reversed(printed.splitlines()):
        if line.startswith("{"):
            found: dict[str, Any] = json.loads(line)
            return found
    return None
