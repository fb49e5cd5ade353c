#!/usr/bin/env bash
# Checks and measures on one GPU what continuous integration cannot: the loader, the training steps, the ranking.
#
#   tests/gpu/check.sh OUT [--seconds 510] [--parts data,correctness,decoding,training,ranking,limits] [--toy]
#
# OUT gets results.json, results.md and log.txt, written anew after every single result, so that a run that is stopped
# leaves what it had. Parts are processes of their own with a limit of time each; one that fails does not end the others.
# Needs PyTorch, NVIDIA DALI and this project's other packages, on PYTHONPATH or installed. PYTHON names the interpreter.
set -euo pipefail
cd "$(dirname "$0")/../.."
export PYTHONUNBUFFERED=1 PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python3}" -m tests.gpu "$@"
