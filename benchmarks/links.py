"""Hosts on one machine, joined by a network of limited rate: namespaces for network, processes, IPC and host name.

    host 0 --veth, tbf-- switch (a bridge in a namespace of its own) --tbf, veth-- host 1, 2, ...
    host 0 --tbf, TUN-- relay (benchmarks.relay, where a cable has a delay) --TUN, tbf-- host 1, 2, ...

The rate is limited in both directions of every host's cable. Nothing leaves the machine, and the root namespace has no part in
it. A host has its own processes too, so that no library finds a short cut around the link (PyTorch's RPC would copy from
process to process).
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import relay

LOOPBACK = "loopback"
_PREFIX = "hvdlm"
_CABLE = "eth0"
_NETNS = Path("/run/netns")
_NETNS_FILES = Path("/etc/netns")
_RATE = re.compile(r"((\d+(?:\.\d+)?)([kmg])bit)(?:\+(\d+(?:\.\d+)?)ms)?")
_BITS = {"k": 1e3, "m": 1e6, "g": 1e9}
_SECONDS = 2.0
_SECONDS_IGNORED = 0.5
"""The bucket is full at first, and TCP's window small."""


class LinkError(Exception):
    """A link cannot be made; the message says what is needed."""


@dataclass(frozen=True)
class Host:
    """A place where ranks run."""

    name: str
    address: str
    namespace: str | None = None
    """None: this machine as it is."""

    def enter(self, command: Sequence[str]) -> list[str]:
        """`command` as it runs on this host."""
        if self.namespace is None:
            return list(command)
        unshare = ["unshare", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc"]
        named = ["sh", "-c", f'hostname {self.name}; exec "$@"', "sh"]
        return ["ip", "netns", "exec", self.namespace, *unshare, *named, *command]


@dataclass(frozen=True)
class Network:
    """Hosts and the interface on which they reach each other."""

    rate: str
    """As tc writes it, with the delay of a way if there is one (``100mbit+5ms``), or loopback."""
    hosts: tuple[Host, ...]
    interface: str
    ssh_folder: Path | None = None
    """Holds an `ssh` that enters the namespaces; for the front of PATH."""
    slow_hosts: int = 0
    """So many, the last ones, have cables of half the rate."""

    def host(self, rank: int, ranks: int) -> Host:
        """Ranks fill the hosts in order; one that is beyond (a server) is on the first."""
        return self.hosts[rank * len(self.hosts) // ranks if rank < ranks else 0]

    def sent_bytes(self) -> int:
        """Bytes that the hosts have sent so far; 0 on loopback, where everybody sends."""
        if self.rate == LOOPBACK:
            return 0
        command = ["cat", f"/sys/class/net/{self.interface}/statistics/tx_bytes"]
        return sum(
            int(subprocess.run(_in_network(host, command), check=True, capture_output=True, text=True).stdout)
            for host in self.hosts
        )


def _in_network(host: Host, command: Sequence[str]) -> list[str]:
    return list(command) if host.namespace is None else ["ip", "netns", "exec", host.namespace, *command]


@contextlib.contextmanager
def connect(rate: str, hosts: int, slow_hosts: int = 0) -> Iterator[Network]:
    """A network of `hosts` hosts at `rate` (``100mbit``, ``1gbit+5ms``), so many of them at half of it, removed at the end whatever
    happens; or loopback.

    Raises LinkError if it cannot be made.
    """
    if rate == LOOPBACK:
        yield Network(LOOPBACK, (Host("localhost", "127.0.0.1"),), "lo")
        return
    check_rate(rate)
    _check_tools()
    remove_leftovers()
    with tempfile.TemporaryDirectory(prefix="hvd_lm_ssh_") as folder:
        network = Network(rate, plan_hosts(hosts, f"{_PREFIX}{os.getpid()}"), _CABLE, Path(folder), slow_hosts)
        switch = f"{_PREFIX}{os.getpid()}switch"
        with contextlib.ExitStack() as undo:
            for namespace in [*(host.namespace or "" for host in network.hosts), switch]:
                undo.callback(_remove, namespace)
            for host in network.hosts:
                _write_hosts_file(host, network.hosts)
            if delay_seconds(rate):
                _run_all(namespace_commands(network))
                undo.enter_context(_relayed(network))
                _run_all(long_commands(network))
            else:
                _run_all([f"ip netns add {switch}".split(), *namespace_commands(network), *up_commands(network, switch)])
            write_ssh(Path(folder) / "ssh", network.hosts)
            yield network


@contextlib.contextmanager
def _relayed(network: Network) -> Iterator[None]:
    """Interfaces of the hosts, and the process that is the cables between them."""
    hosts = [f"{host.namespace}={host.address}={bytes_per_second(network, host)}" for host in network.hosts]
    command = [sys.executable, "-m", "benchmarks.relay", network.interface, str(delay_seconds(network.rate)), *hosts]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stderr
        try:
            if process.stdout.readline().strip() != relay.READY:
                why = process.stderr.read().strip().rpartition("\n")[-1] or f"benchmarks.relay ended with {process.wait()}"
                raise LinkError(f"a cable with a delay cannot be made: {why}")
            yield
        finally:
            process.kill()


def check_rate(rate: str) -> None:
    if rate != LOOPBACK and not _RATE.fullmatch(rate):
        raise LinkError(
            f"a link is {LOOPBACK} or a rate as tc writes it, such as 100mbit or 1gbit, or with the delay of a way 100mbit+5ms, "
            f"not {rate}"
        )


def _parts(rate: str) -> tuple[str, float, str, float]:
    """What tc is told, the number and unit in it, and milliseconds of delay."""
    match = _RATE.fullmatch(rate)
    assert match
    return match[1], float(match[2]), match[3], float(match[4] or 0)


def bytes_per_second(network: Network, host: Host) -> float:
    """Of the cable of a host of a limited network."""
    _, number, unit, _ = _parts(network.rate)
    return number * _BITS[unit] / 8 / (2 if _is_slow(network, host) else 1)


def _is_slow(network: Network, host: Host) -> bool:
    return network.hosts.index(host) >= len(network.hosts) - network.slow_hosts


def delay_seconds(rate: str) -> float:
    """Of a way on a limited link; back it takes as long again."""
    return _parts(rate)[-1] / 1e3


def _check_tools() -> None:
    missing = [tool for tool in ("ip", "tc", "unshare") if not shutil.which(tool)]
    if missing or os.geteuid():
        lacks = " and ".join((["root"] if os.geteuid() else []) + missing)
        raise LinkError(f"a rate-limited link needs {lacks}: run as root with iproute2 and util-linux, or use --link {LOOPBACK}")


def plan_hosts(count: int, prefix: str) -> tuple[Host, ...]:
    names = [f"{prefix}host{index}" for index in range(count)]
    return tuple(Host(name, f"10.99.0.{index + 1}", name) for index, name in enumerate(names))


def namespace_commands(network: Network) -> list[list[str]]:
    """What makes the hosts, as commands of iproute2."""
    lines = [(f"ip netns add {host.namespace}", f"ip -n {host.namespace} link set lo up") for host in network.hosts]
    return [line.split() for of_host in lines for line in of_host]


def up_commands(network: Network, switch: str) -> list[list[str]]:
    """What makes the network, as commands of iproute2."""
    lines = [f"ip -n {switch} link add bridge type bridge", f"ip -n {switch} link set bridge up"]
    for index, host in enumerate(network.hosts):
        port, namespace = f"port{index}", host.namespace
        lines += [
            f"ip link add {_CABLE} netns {namespace} type veth peer name {port} netns {switch}",
            f"ip -n {switch} link set {port} master bridge up",
            *_cable_lines(network, host),
            f"tc -n {switch} qdisc add dev {port} {_limit(network, host)}",
        ]
    return [line.split() for line in lines]


def long_commands(network: Network) -> list[list[str]]:
    """What makes the network of interfaces that a relay has made."""
    lines: list[str] = []
    for host in network.hosts:
        lines += [f"ip -n {host.namespace} link set {_CABLE} mtu {relay.MTU}", *_cable_lines(network, host)]
    return [line.split() for line in lines]


def _cable_lines(network: Network, host: Host) -> list[str]:
    return [
        f"ip -n {host.namespace} addr add {host.address}/24 dev {_CABLE}",
        f"ip -n {host.namespace} link set {_CABLE} up",
        f"tc -n {host.namespace} qdisc add dev {_CABLE} {_limit(network, host)}",
    ]


def _limit(network: Network, host: Host) -> str:
    rate = f"{8 * bytes_per_second(network, host):.0f}bit" if _is_slow(network, host) else _parts(network.rate)[0]
    return f"root tbf rate {rate} burst 256kb latency 50ms"


def write_ssh(path: Path, hosts: Sequence[Host]) -> None:
    """A stand-in for ssh that takes the options horovodrun and mpirun give, and enters the namespace of the host."""
    cases = "\n".join(f'{host.name}) exec {shlex.join(host.enter(["sh", "-c"]))} "$*" ;;' for host in hosts)
    path.write_text(
        "#!/bin/sh\n"
        'host=\nwhile :; do case "$1" in\n-[bcDEeFIiJLlmOopQRSWw]) shift 2 ;;\n-*) shift ;;\n'
        '*) [ -n "$host" ] && break; host=$1; shift ;;\nesac; done\n'
        f'case "$host" in\n{cases}\n*) echo "ssh: no host of this bench: $host" >&2; exit 255 ;;\nesac\n',
        encoding="utf-8",
    )
    path.chmod(0o755)


def _write_hosts_file(host: Host, hosts: Sequence[Host]) -> None:
    # `ip netns exec` shows it to the host as its /etc/hosts.
    assert host.namespace
    folder = _NETNS_FILES / host.namespace
    folder.mkdir(parents=True)
    lines = ["127.0.0.1 localhost", *(f"{other.address} {other.name}" for other in hosts)]
    (folder / "hosts").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _run_all(commands: Iterable[Sequence[str]]) -> None:
    for command in commands:
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if ended.returncode:
            raise LinkError(f"`{shlex.join(command)}` failed: {ended.stderr.strip()}")


def _remove(namespace: str) -> None:
    subprocess.run(["ip", "netns", "del", namespace], capture_output=True, check=False)
    shutil.rmtree(_NETNS_FILES / namespace, ignore_errors=True)


def remove_leftovers() -> None:
    """Remove the networks of benches that were killed."""
    for folder in (_NETNS, _NETNS_FILES):
        for path in folder.glob(f"{_PREFIX}*") if folder.is_dir() else ():
            owner = re.fullmatch(rf"{_PREFIX}(\d+)(switch|host\d+)", path.name)
            if owner and not Path("/proc", owner[1]).exists():
                _remove(path.name)


# --- bandwidth -------------------------------------------------------------------------------------------


def measure_bandwidth(network: Network) -> float:
    """Bytes/s that one TCP connection carries from the last host to the first."""
    port = free_port()
    first, last = network.hosts[0], network.hosts[-1]
    module = [sys.executable, "-m", "benchmarks.links"]
    receive = _in_network(first, [*module, "receive", first.address, str(port)])
    send = _in_network(last, [*module, "send", first.address, str(port)])
    with subprocess.Popen(receive, stdout=subprocess.PIPE, text=True) as receiver:
        try:
            subprocess.run(send, check=True, timeout=30)
            output, _ = receiver.communicate(timeout=30)
        except BaseException:
            receiver.kill()
            raise
    return float(output)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def receive(address: str, port: int) -> float:
    """Rate of the bytes that come on one connection, from `_SECONDS_IGNORED` on."""
    with socket.create_server((address, port)) as server:
        server.settimeout(30)
        connection, _ = server.accept()
    buffer = memoryview(bytearray(1 << 20))
    began = time.perf_counter()
    first = last = (0.0, 0)
    total = 0
    with connection:
        while count := connection.recv_into(buffer):
            total += count
            last = (time.perf_counter() - began, total)
            if last[0] < _SECONDS_IGNORED:
                first = last
    return (last[1] - first[1]) / (last[0] - first[0])


def send(address: str, port: int) -> None:
    """Send for `_SECONDS`; waits for the receiver to listen."""
    deadline = time.monotonic() + 30
    while True:
        try:
            connection = socket.create_connection((address, port))
            break
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
    data = bytes(1 << 20)
    with connection:
        timer = threading.Event()
        threading.Timer(_SECONDS, timer.set).start()
        while not timer.is_set():
            connection.sendall(data)


if __name__ == "__main__":
    if sys.argv[1] == "receive":
        print(receive(sys.argv[2], int(sys.argv[3])))
    else:
        send(sys.argv[2], int(sys.argv[3]))
