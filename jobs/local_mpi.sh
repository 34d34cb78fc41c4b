#!/usr/bin/env bash
# The reference model on the cores or GPUs of this machine, over MPI.
#
#   jobs/local_mpi.sh TEXT...                           2 ranks, PyTorch
#   RANKS=4 FRAMEWORK=tensorflow jobs/local_mpi.sh TEXT...
#
# In a container that runs as root, OpenMPI wants OMPI_ALLOW_RUN_AS_ROOT=1 and OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
test $# -gt 0 || { echo "usage: [RANKS=2] [FRAMEWORK=torch] [OUT=runs/local] $0 TEXT..." >&2; exit 2; }

# After Ctrl-C mpirun waits so many seconds, asks the ranks to end, and kills them as long after that.
export OMPI_MCA_odls_base_sigkill_timeout=${OMPI_MCA_odls_base_sigkill_timeout:-10}
# A waiting rank must not poll on a core that another one computes on; more ranks than cores are allowed.
exec horovodrun -np "${RANKS:-2}" --mpi --mpi-args="--mca mpi_yield_when_idle 1 --oversubscribe" \
    hvd-lm train --config "$here/reference.yaml" \
    --framework "${FRAMEWORK:-torch}" --out "${OUT:-runs/local}" --data "$@"
