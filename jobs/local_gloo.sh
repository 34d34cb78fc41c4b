#!/usr/bin/env bash
# The reference model on the cores or GPUs of this machine, over Gloo (no MPI needed).
#
#   jobs/local_gloo.sh TEXT...                          2 ranks, PyTorch
#   RANKS=4 FRAMEWORK=tensorflow jobs/local_gloo.sh TEXT...
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
test $# -gt 0 || { echo "usage: [RANKS=2] [FRAMEWORK=torch] [OUT=runs/local] $0 TEXT..." >&2; exit 2; }

exec horovodrun -np "${RANKS:-2}" --gloo \
    hvd-lm train --config "$here/reference.yaml" \
    --framework "${FRAMEWORK:-torch}" --out "${OUT:-runs/local}" --data "$@"
