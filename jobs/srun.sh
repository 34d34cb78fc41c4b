#!/usr/bin/env bash
# The reference model by srun, without horovodrun and without a batch script: in the nodes that salloc has given, or in nodes of its own.
# jobs/slurm.sbatch is for runs that outlive a time limit.
#
#   salloc --nodes 2 --ntasks-per-node 4 --gpus-per-task 1 jobs/srun.sh TEXT...
#   SLURM_NTASKS=2 jobs/srun.sh TEXT...                       srun asks for what it needs
#   FRAMEWORK=tensorflow OUT=/shared/runs/srun salloc --ntasks 2 jobs/srun.sh TEXT... --steps 1000
#
# Needs Slurm with PMIx (`srun --mpi=list` names it) and Horovod built with an MPI that speaks it (`hvd-lm doctor`), on every node at the
# same path; texts and OUT on a file system that all nodes see.
# Change: what salloc asks for, and the settings in reference.yaml.
# Watch it: what rank 0 says comes here; squeue; hvd-lm report OUT. Stop it: `scancel --signal=USR1 JOB.STEP` (squeue --steps names it);
# a step and a checkpoint later all ranks have left with exit code 5.
# It goes on: the same command again.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
test $# -gt 0 || { echo "usage: [FRAMEWORK=torch] [OUT=runs/srun] [salloc OPTIONS] $0 TEXT..." >&2; exit 2; }

exec srun --mpi=pmix --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
    hvd-lm train --config "$here/reference.yaml" \
    --framework "${FRAMEWORK:-torch}" --out "${OUT:-runs/srun}" --resume auto --data "$@"
