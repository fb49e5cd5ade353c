#!/usr/bin/env bash
# Submits the whole chain, each job after the one before it has ended well: prep (array), merge, pretrain, rank, train.
#   launch/slurm/submit.sh SETTINGS [--dry-run]
# What is done, queued or running already is left out, so the same command goes on after a failure. When a job fails,
# SLURM cancels those that wait for it. SETTINGS is a copy of launch/slurm/settings.sh.
set -euo pipefail

fail() { echo "submit.sh: $*" >&2; exit 2; }

dry_run=no settings=
for argument in "$@"; do
    case $argument in
        --dry-run) dry_run=yes ;;
        -h | --help) sed -n '2,6s/^# //p' "$0"; exit ;;
        -*) fail "unknown option $argument; known: --dry-run" ;;
        *) [ -z "$settings" ] || fail "one SETTINGS, please: $settings or $argument?"; settings=$argument ;;
    esac
done
[ -n "$settings" ] || fail "usage: launch/slurm/submit.sh SETTINGS [--dry-run]"
[ -f "$settings" ] || fail "no such file: $settings; copy launch/slurm/settings.sh and edit the copy"
settings=$(realpath "$settings")
cd "$(dirname "$(realpath "$0")")/../.."
# shellcheck source=launch/slurm/settings.sh
source "$settings"
while read -r name; do
    declare -p "$name" > /dev/null 2>&1 || fail "$settings does not say $name; launch/slurm/settings.sh does"
done < <(sed -n 's/^\([A-Z_]*\)=.*/\1/p' launch/slurm/settings.sh)
[ -f "$CONFIG" ] || fail "CONFIG: no such file: $CONFIG"
[ -n "$SOURCE" ] || [ -f "$DATASET/dataset.json" ] || fail "DATASET: no dataset in $DATASET, and SOURCE is empty"
[ -z "$DEEPSPEED" ] || [ -f "$DEEPSPEED" ] || fail "DEEPSPEED: no such file: $DEEPSPEED"
[ -z "$DEEPSPEED" ] || [ "$LAUNCHER" = srun ] || fail "DEEPSPEED goes with LAUNCHER=srun; else ACCELERATE_CONFIG names it"
[ "$LAUNCHER" != accelerate ] || [ -f "$ACCELERATE_CONFIG" ] || fail "ACCELERATE_CONFIG: no such file: '$ACCELERATE_CONFIG'"
case $LAUNCHER in srun | accelerate) ;; *) fail "LAUNCHER is '$LAUNCHER'; known: srun, accelerate" ;; esac

# --- what is done -----------------------------------------------------------------------------------------------------
noise_is_there() {
    local i name=
    for ((i = 0; i < ${#NOISE_OPTIONS[@]}; i++)); do
        case ${NOISE_OPTIONS[i]} in --name) name=${NOISE_OPTIONS[i + 1]} ;; --name=*) name=${NOISE_OPTIONS[i]#*=} ;; esac
    done
    [ "${#NOISE_OPTIONS[@]}" = 0 ] || [ -f "$DATASET/labels/$name.parquet" ]
}
all_done() {
    local verb
    for verb in "$@"; do [ -f "$RUN_DIR/$verb/done.json" ] || return 1; done
}
is_done() {
    case $1 in
        prep) [ -f "$DATASET/dataset.json" ] ;;
        merge) [ -f "$DATASET/dataset.json" ] && noise_is_there && { [ -z "$SOURCE" ] || [ -f "$RUN_DIR/slurm/verified" ]; } ;;
        pretrain) all_done "${PRETRAIN_VERBS[@]}" ;;
        rank) all_done rank mine ;;
        train) [ -f "$RUN_DIR/summary.json" ] && [ ! "$RUN_DIR/summary.json" -nt "$RUN_DIR/report.html" ] ;;
    esac
}

# --- what is queued or running ----------------------------------------------------------------------------------------
# Without an answer of SLURM nothing is submitted: two jobs would write into one folder.
queue() { squeue --noheader --user="$(id -un)" --format='%F %T'; }
if [ "$dry_run" = no ]; then
    mkdir -p "$RUN_DIR/slurm"
    exec 9> "$RUN_DIR/slurm/submit.lock"
    # 1: somebody has the lock; anything else: this file system knows no locks, and nobody is refused
    flock --nonblock 9 || [ $? != 1 ] || fail "another submit.sh is at work on $RUN_DIR"
    jobs=$(queue)
    for ((i = 0; i < 30; i++)); do      # a job that ends now may be requeued, or not
        if [[ $jobs != *COMPLETING* ]]; then break; fi
        sleep 2
        jobs=$(queue)
    done
elif command -v squeue > /dev/null; then jobs=$(queue 2> /dev/null || true)
else jobs=
fi
is_active() {
    local number
    number=$(cat "$RUN_DIR/slurm/$1.job" 2> /dev/null) && [[ $'\n'$jobs =~ $'\n'$number' ' ]]
}

# --- submit -----------------------------------------------------------------------------------------------------------
previous=
submit() {
    local name=$1 number after=()
    shift
    if is_done "$name"; then echo "$name: done"; return; fi
    if is_active "$name"; then
        previous=$(cat "$RUN_DIR/slurm/$name.job")
        echo "$name: in the queue already, job $previous"
        return
    fi
    if [ -n "$previous" ]; then after=(--dependency="afterok:$previous" --kill-on-invalid-dep=yes); fi
    local command=(sbatch --parsable --job-name="$(basename "$RUN_DIR")-$name" --chdir="$PWD"
        --output="$RUN_DIR/slurm/$name-%j.out" "${after[@]}" "${ALL_JOBS[@]}" "$@" "launch/slurm/$name.sbatch" "$settings")
    if [ "$dry_run" = yes ]; then
        printf '%q ' "${command[@]}"
        echo
        previous="<$name>"
        return
    fi
    number=$("${command[@]}")
    previous=${number%%;*}              # on some sites: number;cluster
    echo "$previous" > "$RUN_DIR/slurm/$name.job"
    echo "$name: submitted as job $previous"
}
if [ -n "$SOURCE" ]; then submit prep --array="1-$PREP_PARTS" --output="$RUN_DIR/slurm/prep-%A_%a.out" "${PREP_JOBS[@]}"; fi
submit merge "${PREP_JOBS[@]}"
submit pretrain "${GPU_JOBS[@]}"
submit rank "${GPU_JOBS[@]}"
submit train "${GPU_JOBS[@]}"
if [ "$dry_run" = no ]; then echo "logs: $RUN_DIR/slurm; what waits for what: squeue --user=$(id -un)"; fi
