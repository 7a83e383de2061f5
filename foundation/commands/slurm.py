"""`foundation slurm check`: what will go wrong with a job, before it waits in the queue."""

from __future__ import annotations

from collections.abc import Sequence

from datamodules.errors import InputError

_USAGE = """usage: foundation slurm check [SBATCH OPTIONS] [SCRIPT [ARGUMENTS]]

What you would give to sbatch, for example

  foundation slurm check --nodes=2 --ntasks-per-node=4 --gres=gpu:4 slurm/pretrain.sbatch --data.store stores/mp

Says whether tasks fit devices, the time limit leaves time to start and to save, the store can be seen, W&B can record,
the disk has room, and Slurm would take the job. The exit code is 1 where there is a problem."""


def main(words: Sequence[str]) -> int:
    """Run the command."""
    if not words or words[0] in ("-h", "--help"):
        print(_USAGE)
        return 0 if words else 2
    if words[0] != "check":
        raise InputError(f"slurm {words[0]}: the only one is check (see foundation slurm --help)")
    if words[1:2] in (["-h"], ["--help"]):
        print(_USAGE)
        return 0
    from foundation.slurm.check import check
    from foundation.slurm.submission import read_submission

    findings = list(check(read_submission(words[1:])))
    for finding in findings:
        print(f"{finding.level}: {finding.text}")
    return int(any(finding.level == "problem" for finding in findings))
