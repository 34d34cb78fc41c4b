"""Places for faults: a small disk, and two hosts on this machine with a link between them that can be cut. Both need root."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

PORT = "2222"
LINK = "wire0"
"""The interface of both hosts."""


def _run(*words: str | Path) -> None:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"{' '.join(map(str, words))}: {done.stderr.strip()}")


@dataclass(frozen=True)
class Disk:
    """A file system of its own, in memory."""

    folder: Path

    def remount(self, options: str) -> None:
        _run("mount", "-o", f"remount,{options}", self.folder)


@contextmanager
def disk(folder: Path, size: str) -> Iterator[Disk]:
    """Of `size`, as 2m is, at `folder`. Skips the test where it cannot be had."""
    folder.mkdir()
    try:
        _run("mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder)
    except OSError as error:
        pytest.skip(f"no file system may be mounted here: {error}")
    try:
        yield Disk(folder)
    finally:
        _run("umount", "--lazy", folder)


@dataclass(frozen=True)
class Hosts:
    """Two network namespaces with an sshd each, whose user is root."""

    names: tuple[str, str]
    folder: Path

    def on_first(self, command: Sequence[str | Path]) -> list[str]:
        """`command` as on the first host."""
        script = f'hostname {self.names[0]}; PATH={self.folder}:$PATH exec "$@"'
        words = [str(word) for word in command]
        return ["ip", "netns", "exec", self.names[0], "unshare", "--uts", "bash", "-c", script, "bash", *words]

    def cut(self) -> None:
        """The link."""
        _run("ip", "-n", self.names[1], "link", "set", LINK, "down")

    def mend(self) -> None:
        _run("ip", "-n", self.names[1], "link", "set", LINK, "up")


@contextmanager
def two_hosts(folder: Path) -> Iterator[Hosts]:
    """Their keys and settings are in `folder`. Skips the test where they cannot be had."""
    sshd = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin")
    missing = [name for name in ("ip", "unshare", "ssh", "ssh-keygen") if not shutil.which(name)]
    if os.geteuid() or missing or not sshd:
        pytest.skip("two hosts need root, iproute2, ssh and sshd")
    names = (f"hvd-lm-{os.getpid()}-a", f"hvd-lm-{os.getpid()}-b")
    hosts = Hosts(names, folder)
    folder.mkdir(mode=0o700)
    try:
        _set_up(hosts, sshd)
        yield hosts
    finally:
        for name in names:
            found = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True).stdout.split()
            for pid in map(int, found):
                with suppress(ProcessLookupError):
                    os.kill(pid, 9)
            subprocess.run(["ip", "netns", "del", name], capture_output=True)
            shutil.rmtree(f"/etc/netns/{name}", ignore_errors=True)


def _set_up(hosts: Hosts, sshd: str) -> None:
    folder = hosts.folder
    addresses = ["10.77.4.1", "10.77.4.2"]
    table = "127.0.0.1 localhost\n" + "".join(f"{address} {name}\n" for address, name in zip(addresses, hosts.names, strict=True))
    try:
        for name in hosts.names:
            _run("ip", "netns", "add", name)
    except OSError as error:
        pytest.skip(f"no network namespaces here: {error}")
    first, second = hosts.names
    _run("ip", "-n", first, "link", "add", LINK, "type", "veth", "peer", "name", LINK, "netns", second)
    _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "key")
    known = []
    Path("/run/sshd").mkdir(exist_ok=True)
    for name, address in zip(hosts.names, addresses, strict=True):
        settings = Path("/etc/netns") / name
        settings.mkdir(parents=True)
        (settings / "hosts").write_text(table)
        _run("ip", "-n", name, "link", "set", "lo", "up")
        _run("ip", "-n", name, "addr", "add", f"{address}/24", "dev", LINK)
        _run("ip", "-n", name, "link", "set", LINK, "up")
        host_key = folder / f"{name}.key"
        _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", host_key)
        known.append(f"[{name}]:{PORT},[{address}]:{PORT} {host_key.with_suffix('.key.pub').read_text()}")
        config = folder / f"{name}.conf"
        config.write_text(
            f"Port {PORT}\nListenAddress {address}\nHostKey {host_key}\nPidFile none\nAuthorizedKeysFile {folder}/key.pub\n"
            "PermitRootLogin prohibit-password\nPasswordAuthentication no\nUsePAM no\nStrictModes no\n"
        )
        _run("ip", "netns", "exec", name, "unshare", "--uts", "bash", "-c", f"hostname {name}; exec {sshd} -f {config}")
    (folder / "known_hosts").write_text("".join(known))
    (folder / "config").write_text(
        f"Port {PORT}\nUser root\nIdentityFile {folder}/key\nIdentitiesOnly yes\nUserKnownHostsFile {folder}/known_hosts\n"
        "BatchMode yes\nLogLevel ERROR\n"
    )
    wrapper = folder / "ssh"  # what launchers find
    wrapper.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {folder}/config "$@"\n')
    wrapper.chmod(0o755)
