# shellcheck shell=bash
# Sourced by the batch scripts, in the repository: what a job does when it is asked to stop, and how it starts processes.
#
# Some minutes before the time limit, and when a job with more priority wants the nodes, SLURM sends USR1 to the batch
# script (--signal=B:USR1@…). The script sends USR2 to the processes; they finish the step, save, write status.json and
# leave; the script has the job requeued. After the start it goes on from what was saved.
set -euo pipefail

export SETTINGS=$1
# shellcheck source=launch/slurm/settings.sh
source "$SETTINGS"

say() { echo "$(date +%FT%T) $SLURM_JOB_NAME: $*"; }

mkdir -p "$RUN_DIR/slurm"               # a script that is submitted alone may be the first to come here
say "job $SLURM_JOB_ID on $SLURM_JOB_NODELIST, start number $((${SLURM_RESTART_COUNT:-0} + 1))"

# What scancel and scontrol are to call this job. One task of an array has the array's number as its SLURM_JOB_ID, and
# by that number all tasks would be meant.
job=$SLURM_JOB_ID
if [ -n "${SLURM_ARRAY_JOB_ID:-}" ]; then job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID; fi

# After `sbatch --export=NONE`, or only some variables, srun would keep from the processes what is exported here.
export SLURM_EXPORT_ENV=ALL

# All processes meet at this port of the first node: another one for each job, as jobs may share a node.
MASTER_PORT=$((15000 + SLURM_JOB_ID % 10000))
head_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_ADDR=${HEAD_ADDRESS:-$(scontrol -o show node "$head_node" | sed -n 's/.* NodeAddr=\([^ ]*\).*/\1/p')}
export MASTER_ADDR MASTER_PORT

export PROCESSES=${SLURM_NTASKS:-$SLURM_JOB_NUM_NODES}

# srun does not take this over from sbatch, and would give each process one core.
if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then
    SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
    if [ "$LAUNCHER" = accelerate ]; then       # all of a node's, for one launcher
        SRUN_CPUS_PER_TASK=$((SLURM_CPUS_PER_TASK * ${SLURM_NTASKS_PER_NODE:-1}))
    fi
    export SRUN_CPUS_PER_TASK
fi

# supervise COMMAND…: runs it in the background, as bash hears signals only while it waits; sets rc, its exit code.
pid=
supervise() {
    "$@" &
    pid=$!
    rc=0
    wait "$pid" || rc=$?
    while [ "$rc" -gt 128 ] && kill -0 "$pid" 2> /dev/null; do      # a signal to this script had ended the wait
        rc=0
        wait "$pid" || rc=$?
    done
}

# state: what the processes said last (twostage/runtime/status.py): running, preempted, done, failed; or nothing yet.
state() { sed -n 's/^ *"state": "\([a-z]*\)".*/\1/p' "$RUN_DIR/status.json" 2> /dev/null || true; }

# remind: signals all processes of the job but this script, until they have left; the first time they may not listen yet.
remind() {
    while kill -0 "$pid" 2> /dev/null; do
        scancel --signal=USR2 "$job" || true        # once more in 10 s: the controller may be restarting
        sleep 10
    done
}
asked=no
trap 'asked=yes; say "asked to stop"; [ -z "$pid" ] || remind &' USR1

# requeue: the same job again, from where it is now. A job that a user cancels never comes here: that is no USR1.
requeue() {
    if [ "${SLURM_RESTART_COUNT:-0}" -ge "$MAX_REQUEUES" ]; then
        say "not requeued: it was $SLURM_RESTART_COUNT times already (MAX_REQUEUES). All is saved; submit.sh goes on with it"
        exit 75
    fi
    say "saved; requeued"
    for _ in 1 2 3 4 5; do
        if scontrol requeue "$job"; then exit 0; fi
        sleep 10
    done
    say "not requeued: SLURM refused it five times, see above. All is saved; submit.sh goes on with it"
    exit 75
}

# stage VERB OPTION…: a verb of twostage in all processes, to its end. `alone` is the same in one process.
stage() {
    if [ "$LAUNCHER" = accelerate ]; then
        verb accelerate --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 -- "$@"
    else
        verb srun -- "$@"
    fi
}
alone() { verb srun --nodes=1 --ntasks=1 -- "$@"; }

verb() {
    local launcher=$1 tasks=() wait=60
    shift
    while [ "$1" != -- ]; do tasks+=("$1"); shift; done
    shift
    if [ "$asked" = yes ]; then requeue; fi     # since the verb before this one
    rm -f "$RUN_DIR/status.json"
    say "twostage $1"
    if [ "$1" = run ]; then wait=0; fi      # rank 0 writes the report when the others have left, for as long as it takes
    supervise srun "${SRUN_OPTIONS[@]}" "${tasks[@]}" --label --kill-on-bad-exit=1 --wait=$wait \
        launch/slurm/start.sh "$launcher" "$@" --config "$CONFIG" --run.dir "$RUN_DIR" "${OPTIONS[@]}"
    case $(state) in
        done) ;;
        preempted)
            if [ "$asked" = yes ]; then requeue; fi
            say "stopped; all is saved"
            exit 75 ;;
        *)
            say "twostage $1 failed (srun's exit code: $rc); the first error is above. submit.sh goes on after it is mended"
            exit 1 ;;
    esac
}

# prep VERB OPTION…: a verb of data_prep. It may be killed at any moment, so it is, and the job is requeued.
prep() {
    if [ "$asked" = yes ]; then requeue; fi
    say "data_prep $1"
    supervise srun "${SRUN_OPTIONS[@]}" "${CONTAINER[@]}" python -m data_prep "$@"
    if [ "$rc" = 0 ]; then return; fi
    if [ "$asked" = yes ]; then requeue; fi
    say "data_prep $1 failed (exit code $rc); the error is above. submit.sh goes on after it is mended"
    exit "$rc"
}

# stage_in: copies the shards to every node's own disk, if STAGE_DIR is set; sets DATA to the options that name the dataset.
# shellcheck disable=SC2034
stage_in() {
    DATA=(--data.dataset "$DATASET")
    if [ -z "$STAGE_DIR" ]; then return; fi
    if [ "$asked" = yes ]; then requeue; fi
    local copy
    copy=$STAGE_DIR/$(sed -n 's/.*"samples_sha256": "\([0-9a-f]*\)".*/\1/p' "$DATASET/dataset.json")
    say "copying shards to $copy"
    supervise srun "${SRUN_OPTIONS[@]}" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --label --kill-on-bad-exit=1 \
        launch/slurm/stage_in.sh "$DATASET" "$copy"
    if [ "$asked" = yes ]; then requeue; fi
    if [ "$rc" != 0 ]; then exit 1; fi
    DATA=(--data.dataset "$copy")
}
