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

# What Slurm calls this job. The number alone would mean the whole array for one of its tasks.
job_name() {
    if [[ -n ${SLURM_ARRAY_JOB_ID:-} ]]; then
        echo "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
    else
        echo "${SLURM_JOB_ID:-0}"
    fi
}

# What the user gave, with the run's folder where that was not given: NAME-JOB, the same when Slurm starts the job again.
# Numbers of jobs come again, on other clusters and with time: a job that starts for the first time takes a new folder,
# NAME-JOB-2 and so on, and one that is started again the last of those that its cluster made.
with_folder() {
    local word base folder cluster=${SLURM_CLUSTER_NAME:-none} number=1 last=
    arguments=("${@:2}")
    for word in "${arguments[@]}"; do
        if [[ $word == --out || $word == --out=* ]]; then return; fi
    done
    base=$FOUNDATION_RUNS/$1-$(job_name)
    folder=$base
    while [[ -d $folder ]]; do
        # one without the note was made by this program before there was one
        if [[ $(cat "$folder/.cluster" 2>/dev/null || echo "$cluster") == "$cluster" ]]; then last=$folder; fi
        number=$((number + 1))
        folder=$base-$number
    done
    if ((${SLURM_RESTART_COUNT:-0} > 0)) && [[ -n $last ]]; then
        folder=$last
    else
        mkdir -p "$folder"
        echo "$cluster" >"$folder/.cluster"
    fi
    arguments+=(--out "$folder")
}

# One process per device, on all nodes of the job.
trainer_shape() {
    local nodes=${SLURM_NNODES:-1} tasks=${SLURM_NTASKS_PER_NODE:-1}
    trainer=(--trainer.num_nodes "$nodes" --trainer.devices "$tasks")
    if ((nodes * tasks > 1)); then trainer+=(--trainer.strategy ddp); fi
}

# Start a command that saves itself when it is signalled. Until it can, signals wait: where `env` knows how, from the
# very start of the process. One task that fails ends the others, which would wait for it; one that is done does not, as
# some sites have it: the first one goes on to judge what was trained.
launch_saving() {
    local hold=()
    if env --block-signal=USR1 true 2>/dev/null; then hold=(env --block-signal=USR1 --block-signal=TERM); fi
    srun --kill-on-bad-exit=1 --wait=0 "${hold[@]}" foundation "$@"
}

# Start a command that goes on where it was but does not save itself on a signal. This shell takes the warning
# (--signal=B:USR1@...), ends the command, which then gives back what it holds, and has the job started again.
launch_again() {
    local code step asked= woken=yes
    trap 'woken=yes asked=yes; scancel --signal=TERM "$(job_name)"' USR1
    trap 'woken=yes' TERM
    srun --wait=0 foundation "$@" & # tasks that are done do not end the others, as some sites have it
    step=$!
    while [[ -n $woken ]]; do # a signal ends the waiting, too
        woken= code=0
        wait "$step" || code=$?
    done
    if [[ -n $asked ]] && ((code != 0)); then
        echo "$1: its time is nearly over; having job $(job_name) started again" >&2
        scontrol requeue "$(job_name)"
    fi
    return "$code"
}
