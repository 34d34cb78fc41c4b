"""The job files take their settings as words, never as something to run. A stand-in for horovodrun tells what it was given."""

from __future__ import annotations

from pathlib import Path

import launcher
import pytest

FILE = Path(launcher.__file__).parents[1] / "jobs" / "several_hosts.sh"


@pytest.fixture
def launch(tmp_path: Path):  # type: ignore[no-untyped-def]
    tell = tmp_path / "horovodrun"
    tell.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    tell.chmod(0o755)

    def start(**settings: str) -> launcher.Ended:
        return launcher.run("bash", FILE, "a text.txt", PATH=f"{tmp_path}:/usr/bin:/bin", **settings)

    return start


def test_hosts_and_their_ranks(launch) -> None:  # type: ignore[no-untyped-def]
    words = launch(HOSTS="gpu-1.lan:4,10.0.0.2:08", CONTROLLER="mpi", NETWORK="eth0,ib0", SSH_PORT="2222")
    assert words.code == 2  # 08 is no number of ranks
    words = launch(HOSTS="gpu-1.lan:4,10.0.0.2:12", CONTROLLER="mpi", NETWORK="eth0,ib0", SSH_PORT="2222").output.splitlines()
    assert words[:5] == ["-np", "16", "-H", "gpu-1.lan:4,10.0.0.2:12", "--mpi"]
    assert words[5:9] == ["--network-interfaces", "eth0,ib0", "--ssh-port", "2222"]
    assert words[-2:] == ["--data", "a text.txt"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HOSTS", "a:x[$(touch {folder}/run)]"),
        ("HOSTS", "a:2,b:$(touch {folder}/run)"),
        ("HOSTS", "a:2\n;touch {folder}/run"),
        ("HOSTS", "-oProxyCommand=touch:1"),
        ("HOSTS", "a"),
        ("HOSTS", "a:2,"),
        ("HOSTS", "a:0"),
        ("CONTROLLER", "gloo --start-timeout 1"),
        ("NETWORK", "eth0;touch {folder}/run"),
        ("SSH_PORT", "22 -oProxyCommand=x"),
    ],
)
def test_what_is_no_name_or_number_is_refused(launch, name: str, value: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    ended = launch(**{"HOSTS": "a:2", name: value.format(folder=tmp_path)})
    assert ended.code == 2
    assert f"{name} must be" in ended.output
    assert not (tmp_path / "run").exists()
