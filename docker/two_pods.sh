#!/usr/bin/env bash
# An image on two hosts that are one machine, without Docker or Kubernetes: its root file system twice, each time with a network, host
# name and processes of its own; sshd runs as mpiuser, and the job's key is mounted, as mpi-operator does both.
#
#   mkdir image && docker export "$(docker create hvd_lm:cpu-torch-tensorflow)" | tar -x -C image      (or buildah mount)
#   docker/two_pods.sh image horovodrun -np 2 -H launcher:1,worker:1 --gloo --network-interfaces eth0 \
#       hvd-lm train --config /opt/hvd_lm/jobs/first_run.yaml --out /runs/pods
#
# The command runs on the host called launcher; /runs is there alone, and its content is left in ./pods-runs. Needs root, iproute2, overlayfs.
set -euo pipefail
test $# -ge 2 -a -d "${1:-}" || { echo "usage: $0 ROOT_FILE_SYSTEM COMMAND..." >&2; exit 2; }
image=$(realpath "$1")
shift
work=$(mktemp -d)
runs=$PWD/pods-runs
launcher=launcher-$$ worker=worker-$$
trap 'exec 2>/dev/null; kill -KILL $(jobs -p); wait; ip netns delete $launcher; ip netns delete $worker; rm -rf "$work"' EXIT

# What the operator's Secret holds. Its files are root's, and all may read them: ssh minds the mode of its user's files alone.
mkdir -p "$work/keys" "$runs"
chmod 755 "$work" "$work/keys"
ssh-keygen -q -t ecdsa -b 521 -N '' -f "$work/keys/id_rsa"
cp "$work/keys/id_rsa.pub" "$work/keys/authorized_keys"
chmod 644 "$work"/keys/*
chown 1000:1000 "$runs"
printf '127.0.0.1 localhost\n10.79.0.1 launcher\n10.79.0.2 worker\n' >"$work/hosts"

ip netns add "$launcher"
ip netns add "$worker"
ip -n "$launcher" link add eth0 type veth peer name eth0 netns "$worker"
for pod in "$launcher:1" "$worker:2"; do
    ip -n "${pod%:*}" address add "10.79.0.${pod#*:}/24" dev eth0
    ip -n "${pod%:*}" link set lo up
    ip -n "${pod%:*}" link set eth0 up
done

# pod NAME COMMAND...: as mpiuser, with no more than an image gets.
pod() {
    local name=$1
    shift
    # shellcheck disable=SC2016  # for the inner shell
    exec ip netns exec "$name-$$" unshare --mount --uts --ipc --pid --fork --kill-child bash -c '
        set -euo pipefail
        name=$1 image=$2 work=$3 runs=$4
        shift 4
        hostname "$name"
        mount -t tmpfs tmpfs /mnt
        mkdir /mnt/upper /mnt/work /mnt/root
        mount -t overlay overlay -o "lowerdir=$image,upperdir=/mnt/upper,workdir=/mnt/work" /mnt/root
        cd /mnt/root
        mkdir -p runs
        mount -t proc proc proc
        mount --rbind /sys sys
        mount --rbind /dev dev
        mount -t tmpfs tmpfs dev/shm
        mount --bind "$work/keys" home/mpiuser/.ssh
        mount -o remount,bind,ro home/mpiuser/.ssh
        cp "$work/hosts" etc/hosts
        test "$name" = worker || mount --bind "$runs" runs
        # Not exec: what ends with unshare is this shell, and all below with it.
        status=0
        chroot --userspec=1000:1000 . /usr/bin/env -i HOME=/home/mpiuser USER=mpiuser \
            PATH=/opt/hvd_lm/bin:/usr/local/bin:/usr/bin:/bin sh -c "cd && exec \"\$@\"" sh "$@" || status=$?
        exit $status
    ' pod "$name" "$image" "$work" "$runs" "$@"
}

pod worker /usr/sbin/sshd -De -f /home/mpiuser/.sshd_config 2>"$work/sshd.log" &
for _ in $(seq 100); do
    ! grep -qs listening "$work/sshd.log" || break
    sleep 0.1
done
status=0
(pod launcher "$@") || status=$?
test "$status" -eq 0 || cat "$work/sshd.log" >&2
exit $status
