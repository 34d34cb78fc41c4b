#!/usr/bin/env bash
# The reference model on hosts that come and go: training goes on with those that are there, and takes in others as they come.
#
# Needs: ssh without a password to every host, the same environment at the same path, the same texts, and an --out that all of them
# share: whichever worker is rank 0 writes the run. Over Gloo.
#
#   jobs/elastic.sh HOSTS_FILE TEXT...                     HOSTS_FILE has a line "host:workers" for each host; edit it while it runs
#   MIN=2 MAX=8 NETWORK=eth0 jobs/elastic.sh HOSTS_FILE TEXT...
#   DISCOVER=./my_cluster.sh jobs/elastic.sh - TEXT...     a script of yours that prints such lines: it is asked every second
#
# A line of the hosts file may go and come at any time. A worker that dies takes its host out for 10 to 60 s, then it is tried again.
# With fewer than MIN workers the job waits, 10 minutes (WAIT), and then ends with a checkpoint; the same command goes on from it.
# Watch: the line "going on after step ..." tells with how many ranks; metrics.jsonl is that of one run.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
test $# -gt 1 || { echo "usage: [MIN=1] [MAX=64] [FRAMEWORK=torch] [OUT=runs/elastic] $0 HOSTS_FILE TEXT..." >&2; exit 2; }

refuse() { echo "$0: $1" >&2; exit 2; }
for name in MIN MAX WAIT SSH_PORT; do
    [[ ${!name:-1} =~ ^[1-9][0-9]{0,4}$ ]] || refuse "$name must be a number, not '${!name}'"
done
[[ ${NETWORK:-any} =~ ^[A-Za-z0-9][A-Za-z0-9.,:_-]*$ ]] || refuse "NETWORK must be the names of interfaces, not '$NETWORK'"
hosts=$1
shift
discover=${DISCOVER:-"$here/discover_hosts.sh"}
test -x "$discover" || refuse "DISCOVER must be a script that can be run, not '$discover'"
test -n "${DISCOVER:-}" -o -r "$hosts" || refuse "there is no hosts file '$hosts'"

# It is run without arguments, by a shell.
HVD_LM_HOSTS_FILE=$(realpath -m "$hosts") exec horovodrun --gloo --min-np "${MIN:-1}" --max-np "${MAX:-64}" -np "${MIN:-1}" \
    --host-discovery-script "$(realpath "$discover")" --elastic-timeout "${WAIT:-600}" --blacklist-cooldown-range 10 60 \
    ${NETWORK:+--network-interfaces "$NETWORK"} ${SSH_PORT:+--ssh-port "$SSH_PORT"} \
    hvd-lm train --elastic --config "$here/reference.yaml" --resume auto \
    --framework "${FRAMEWORK:-torch}" --out "${OUT:-runs/elastic}" --data "$@"
