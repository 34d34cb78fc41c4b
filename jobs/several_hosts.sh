#!/usr/bin/env bash
# The reference model on several hosts that reach each other by ssh without a password.
# Every host needs the same environment at the same path, and the same texts; rank 0 (on the first host) writes the run.
#
#   HOSTS=gpu1:4,gpu2:4 jobs/several_hosts.sh TEXT...              hosts and how many ranks on each, over Gloo
#   HOSTS=... CONTROLLER=mpi jobs/several_hosts.sh TEXT...          over MPI
#   HOSTS=... NETWORK=eth0 jobs/several_hosts.sh TEXT...            if hosts have several networks
#   HOSTS=... SSH_PORT=2222 jobs/several_hosts.sh TEXT...
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
test $# -gt 0 -a -n "${HOSTS:-}" || { echo "usage: HOSTS=host:ranks,... [FRAMEWORK=torch] [OUT=runs/hosts] $0 TEXT..." >&2; exit 2; }

refuse() { echo "$0: $1" >&2; exit 2; }
# Names and numbers only: horovodrun hands them to ssh and to shells on the other hosts.
[[ $HOSTS =~ ^[A-Za-z0-9][A-Za-z0-9._-]*:[1-9][0-9]{0,4}(,[A-Za-z0-9][A-Za-z0-9._-]*:[1-9][0-9]{0,4})*$ ]] ||
    refuse "HOSTS must be host:ranks,..., not '$HOSTS'"
[[ ${CONTROLLER:-gloo} =~ ^(gloo|mpi)$ ]] || refuse "CONTROLLER must be gloo or mpi, not '$CONTROLLER'"
[[ ${NETWORK:-any} =~ ^[A-Za-z0-9][A-Za-z0-9.,:_-]*$ ]] || refuse "NETWORK must be the names of interfaces, not '$NETWORK'"
[[ ${SSH_PORT:-22} =~ ^[1-9][0-9]{0,4}$ ]] || refuse "SSH_PORT must be a number, not '$SSH_PORT'"

ranks=0
for host in ${HOSTS//,/ }; do
    ranks=$((ranks + ${host##*:}))
done

exec horovodrun -np "$ranks" -H "$HOSTS" "--${CONTROLLER:-gloo}" \
    ${NETWORK:+--network-interfaces "$NETWORK"} ${SSH_PORT:+--ssh-port "$SSH_PORT"} \
    hvd-lm train --config "$here/reference.yaml" \
    --framework "${FRAMEWORK:-torch}" --out "${OUT:-runs/hosts}" --data "$@"
