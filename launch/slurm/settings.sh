# shellcheck shell=bash disable=SC2034
# What a chain of SLURM jobs does, and where. Copy this file, edit the copy, and give it to submit.sh:
#
#   cp launch/slurm/settings.sh first.sh
#   launch/slurm/submit.sh first.sh --dry-run
#
# bash reads it: in submit.sh, at the start of every job, and on every node. Paths are relative to the repository.

USER=${USER:-$(id -un)}                 # a job does not always have it

# --- the run -------------------------------------------------------------------------------------------------------
CONFIG=configs/photos.yaml
DATASET=/shared/$USER/photos            # on a file system that all nodes see, like RUN_DIR
RUN_DIR=/shared/$USER/runs/first        # all results; logs go to RUN_DIR/slurm
OPTIONS=()                              # more of twostage's options: (--run.rng_seed=1 --pretrain.batch_size=1024)
PRETRAIN_VERBS=(pretrain)               # (pretrain clean_filter) for mine.rule clean_filter
TRAIN_VERBS=(train)                     # (train baselines finetune) where the configuration has these

# --- the dataset ---------------------------------------------------------------------------------------------------
SOURCE=                                 # the images; empty: the dataset is there already
PREP_PARTS=8                            # tasks of the array job, each of which builds one part
PREP_OPTIONS=(--format folder --short-side 256)     # of `data_prep build`
NOISE_OPTIONS=()                        # of `data_prep noise`, for experiments: (--name noisy --kind symmetric --rate 0.4)

# --- what to ask SLURM for -----------------------------------------------------------------------------------------
# Options of sbatch; they win over the #SBATCH lines of the scripts.
ALL_JOBS=()                             # (--account=… --partition=… --mail-type=FAIL)
PREP_JOBS=(--cpus-per-task=16)          # of each array task, and of the merge
GPU_JOBS=(--nodes=2 --ntasks-per-node=8 --gpus-per-node=8 --cpus-per-task=12)     # one task for each GPU
MAX_REQUEUES=50                         # a job that was started again so often ends instead (preemptions count, too)

# --- how processes are started -------------------------------------------------------------------------------------
# srun: one SLURM task is one process. Nothing stands between SLURM and Python: signals arrive, exit codes count.
#       All GPUs of a node must be visible to each of its tasks: no --gpus-per-task, no --gpu-bind.
# accelerate: one `accelerate launch` on each node starts that node's processes, as ACCELERATE_CONFIG says.
LAUNCHER=srun
DEEPSPEED=                              # with srun: launch/deepspeed/zero1.json; empty: plain data parallelism
ACCELERATE_CONFIG=                      # with accelerate: launch/accelerate/nodes.yaml or deepspeed-nodes.yaml
HEAD_ADDRESS=                           # of the first node, for the others; empty: the one that SLURM itself uses

# --- where the programs are ----------------------------------------------------------------------------------------
PATH=$PWD/.venv/bin:$PATH               # as `make setup` makes it; or: module load …
# With a container this repository has to lie below what is mounted, /shared here; pyxis has to be told to begin in it.
SRUN_OPTIONS=() # pyxis: (--container-image=/shared/twostage.sqsh --container-mounts=/shared --container-workdir="$PWD")
CONTAINER=()    # apptainer: (apptainer exec --nv --bind /shared /shared/twostage.sif)

# --- a copy of the shards on each node's own disk ------------------------------------------------------------------
# Made once for each node, checked by SHA-256, kept for the jobs that follow. Needs room for all shards.
STAGE_DIR=                              # /local/$USER, or ${SLURM_TMPDIR:-}; empty: read where the dataset is
