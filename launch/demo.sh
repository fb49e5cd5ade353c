#!/usr/bin/env bash
# The whole method on real images, on the CPU, in minutes:
#   scikit-learn's scanned digits -> image files -> dataset -> wrong labels -> both stages -> report
# Usage: launch/demo.sh [DIR]      DIR defaults to runs/demo; SEEDS="0 1 2" repeats it with other noise and weights
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-runs/demo}

# 1,797 scanned digits as PNG files, in the layout that people have their own photos in: split/class/file
python -m data_prep digits "$out/images"
# checked, shuffled once, packed into tar shards with Parquet tables
python -m data_prep build "$out/images" "$out/dataset" --format folder --workers 2

for seed in ${SEEDS:-0}; do
    # 40 % of the training labels of five classes become those of a look-alike: 2>7, 3>8, 5<>6, 7>1
    python -m data_prep noise "$out/dataset" --name "noisy-$seed" --kind asymmetric --flips mnist --rate 0.4 --rng-seed "$seed"
    # pretrain, rank, mine, train, evaluate, report, beside ordinary training
    python -m twostage run --config configs/demo/digits.yaml --data.dataset "$out/dataset" \
        --data.labels "noisy-$seed" --run.rng_seed "$seed" --run.dir "$out/run-$seed"
done
