#!/usr/bin/env bash
# What this site needs, edited once. It is read twice: in your shell before you submit, and inside every job.
#
#   source slurm/site.sh
#   sbatch slurm/pretrain.sbatch --config configs/pretrain.yaml --data.store stores/mp
#
# sbatch reads the SBATCH_ variables itself; they win over the #SBATCH lines of a script, and options on sbatch's
# command line win over them.

# export SBATCH_PARTITION=gpu
# export SBATCH_ACCOUNT=my-project
# export SBATCH_QOS=normal

# Where runs are kept: a file system that every node sees. Stores and checkpoints are paths on it too.
export FOUNDATION_RUNS=${FOUNDATION_RUNS:-${SCRATCH:-.}/runs}

# Called inside the job, on its first node; the tasks inherit what it sets.
site_environment() {
    : # module load cuda/12.4
    : # source "$HOME/foundation/.venv/bin/activate"
}

FOUNDATION_SLURM=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export FOUNDATION_SLURM
