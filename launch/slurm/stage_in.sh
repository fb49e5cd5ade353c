#!/usr/bin/env bash
# On a node, started by srun once for each: copies a dataset's shards to the node's own disk.
#   stage_in.sh DATASET COPY
# The tables stay where they are, behind links: they are read once, and labels may be added later. A copy that is there
# is looked over and used; another one is made aside, checked image by image, and renamed.
set -euo pipefail
dataset=$(realpath "$1") copy=$2
# shellcheck source=launch/slurm/settings.sh
source "$SETTINGS"

fail() { echo "$SLURMD_NODENAME: $*" >&2; exit 1; }
check() { "${CONTAINER[@]}" python -m data_prep verify "$@" > "$aside.log" 2>&1; }

mkdir -p "$(dirname "$copy")" || fail "STAGE_DIR cannot be made here; with STAGE_DIR= shards are read where the dataset is"
exec 9> "$copy.lock"
flock 9                         # jobs that share the node make one copy
aside=$copy.tmp
if [ -d "$copy" ]; then
    if check "$copy" --quick; then echo "$SLURMD_NODENAME: $copy was there already"; exit; fi
    echo "$SLURMD_NODENAME: $copy is not whole any more, made anew: $(tail -n 1 "$aside.log")"
fi
rm -rf "$copy" "$aside"         # a job that was killed may have left half of one
needed=$(du --summarize --bytes "$dataset/shards" | cut -f 1)
free=$(df --output=avail --block-size=1 "$(dirname "$copy")" | tail -n 1)
if [ "$free" -lt "$needed" ]; then
    fail "$(dirname "$copy") has $free bytes free, the shards need $needed; with STAGE_DIR= they are read where the dataset is"
fi
mkdir -p "$aside/shards"
find "$dataset" -mindepth 1 -maxdepth 1 ! -name shards ! -name .build -exec ln -s {} "$aside" \;
find "$dataset/shards" -type f -print0 | xargs -0 -P 8 -n 16 cp -t "$aside/shards"
if ! check "$aside"; then cat "$aside.log" >&2; fail "the copy in $aside is not the dataset"; fi
sync -f "$aside"
mv "$aside" "$copy"
echo "$SLURMD_NODENAME: $needed bytes in $copy"
