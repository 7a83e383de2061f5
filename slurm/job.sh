#!/usr/bin/env bash
# What every script here does inside its job: the site's environment, threads, and the way tasks are started.
# shellcheck source=slurm/site.sh
source "${FOUNDATION_SLURM:-${SLURM_SUBMIT_DIR:-.}/slurm}/site.sh"
site_environment

# Some Slurm versions do not hand the job's processors on to srun by themselves.
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$SRUN_CPUS_PER_TASK}

# Signals are for the tasks, which save themselves; this shell waits for them.
trap : TERM USR1

# What the user gave, with the run's folder where that was not given: NAME-JOB, the same when Slurm starts the job again.
with_folder() {
    local job=${SLURM_JOB_ID:-0} word
    if [[ -n ${SLURM_ARRAY_JOB_ID:-} ]]; then job=${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}; fi
    arguments=("${@:2}")
    for word in "${arguments[@]}"; do
        if [[ $word == --out || $word == --out=* ]]; then return; fi
    done
    arguments+=(--out "$FOUNDATION_RUNS/$1-$job")
}

# One process per device, on all nodes of the job.
trainer_shape() {
    local nodes=${SLURM_NNODES:-1} tasks=${SLURM_NTASKS_PER_NODE:-1}
    trainer=(--trainer.num_nodes "$nodes" --trainer.devices "$tasks")
    if ((nodes * tasks > 1)); then trainer+=(--trainer.strategy ddp); fi
}

# Start a command that saves itself when it is signalled. Until it can, signals wait: where `env` knows how, from the
# very start of the process. One task that fails ends the others, which would wait for it.
launch_saving() {
    local hold=()
    if env --block-signal=USR1 true 2>/dev/null; then hold=(env --block-signal=USR1 --block-signal=TERM); fi
    srun --kill-on-bad-exit=1 "${hold[@]}" foundation "$@"
}
