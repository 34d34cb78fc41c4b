#!/usr/bin/env bash
# The reference model by plain mpirun, without horovodrun, on this machine or on several hosts that reach each other by ssh without a
# password.
#
#   jobs/mpirun.sh TEXT...                                    2 ranks on this machine
#   HOSTS=gpu1:4,gpu2:4 NETWORK=eth0 jobs/mpirun.sh TEXT...   hosts and how many ranks on each; the network that joins them
#   FRAMEWORK=tensorflow OUT=/shared/runs/mpi SSH_PORT=2222 jobs/mpirun.sh TEXT... --steps 1000
#
# Needs Horovod built with the MPI of this mpirun (`hvd-lm doctor`). Every host needs the same environment at the same path, and the same
# texts; rank 0, on the first host, writes the run. As root, OpenMPI wants OMPI_ALLOW_RUN_AS_ROOT=1 and OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1.
# Change: HOSTS, NETWORK, and the settings in reference.yaml.
# Watch it: what rank 0 says comes here; hvd-lm report OUT. Stop it: Ctrl-C; a step and a checkpoint later all ranks have left.
# It goes on: the same command again.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
test $# -gt 0 || { echo "usage: [HOSTS=host:ranks,...] [FRAMEWORK=torch] [OUT=runs/mpirun] $0 TEXT..." >&2; exit 2; }

refuse() { echo "$0: $1" >&2; exit 2; }
hosts=${HOSTS:-localhost:2}
# Names and numbers only: mpirun hands them to ssh and to shells on the other hosts.
[[ $hosts =~ ^[A-Za-z0-9][A-Za-z0-9._-]*:[1-9][0-9]{0,4}(,[A-Za-z0-9][A-Za-z0-9._-]*:[1-9][0-9]{0,4})*$ ]] ||
    refuse "HOSTS must be host:ranks,..., not '$hosts'"
[[ ${NETWORK:-any} =~ ^[A-Za-z0-9][A-Za-z0-9.,:_-]*$ ]] || refuse "NETWORK must be the names of interfaces, not '$NETWORK'"
[[ ${SSH_PORT:-22} =~ ^[1-9][0-9]{0,4}$ ]] || refuse "SSH_PORT must be a number, not '$SSH_PORT'"

# After Ctrl-C mpirun waits so many seconds, asks the ranks to end, and kills them as long after that.
export OMPI_MCA_odls_base_sigkill_timeout=${OMPI_MCA_odls_base_sigkill_timeout:-10}
# As many ranks as all hosts have; neighbours by number share a host; a rank's threads may use its share of all cores.
exec mpirun --host "$hosts" --map-by slot --bind-to none \
    -x PATH -x PYTHONPATH -x LD_LIBRARY_PATH \
    --mca plm_rsh_args "-p ${SSH_PORT:-22} -o ServerAliveInterval=5 -o ServerAliveCountMax=4" \
    ${NETWORK:+--mca btl_tcp_if_include "$NETWORK" --mca oob_tcp_if_include "$NETWORK"} \
    hvd-lm train --config "$here/reference.yaml" \
    --framework "${FRAMEWORK:-torch}" --out "${OUT:-runs/mpirun}" --resume auto --data "$@"
