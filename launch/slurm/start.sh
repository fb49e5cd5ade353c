#!/usr/bin/env bash
# On a node, started by srun: becomes one process of twostage, or the launcher of all of this node's.
#   start.sh srun VERB OPTION…          one SLURM task is one process
#   start.sh accelerate VERB OPTION…    one SLURM task is a node
# SLURM's variables say only here which task and which node this is.
set -euo pipefail
launcher=$1
shift
# shellcheck source=launch/slurm/settings.sh
source "$SETTINGS"

# Ignored until Python listens, also by what is started from here: the signal may come while it still loads, and
# accelerate's launcher would die of it and leave its processes behind.
trap '' USR2

if [ "$launcher" = accelerate ]; then
    exec "${CONTAINER[@]}" accelerate launch --config_file "$ACCELERATE_CONFIG" --num_processes "$PROCESSES" \
        --num_machines "$SLURM_JOB_NUM_NODES" --machine_rank "$SLURM_NODEID" \
        --main_process_ip "$MASTER_ADDR" --main_process_port "$MASTER_PORT" --rdzv_conf timeout=120 -m twostage "$@"
fi
if [ -n "$DEEPSPEED" ]; then            # what accelerate's launcher would say
    export ACCELERATE_USE_DEEPSPEED=true ACCELERATE_DEEPSPEED_CONFIG_FILE=$DEEPSPEED
fi
export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_STEP_NUM_TASKS
export LOCAL_WORLD_SIZE="${SLURM_STEP_TASKS_PER_NODE%%[(,]*}"       # such as 8(x2): 8 on each of 2 nodes
exec "${CONTAINER[@]}" python -m twostage "$@"
