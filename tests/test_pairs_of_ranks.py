"""Messages between every two ranks: who plays whom, who is slow, and what a real job finds."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import launcher
import pytest
from conftest import INSTALLED

from hvd_lm.adapters import adapter_class
from hvd_lm.communication.link import read_link, write_link
from hvd_lm.communication.pairs import Pairs, _opponents
from hvd_lm.errors import DataError


@pytest.mark.parametrize("size", [2, 3, 4, 5, 8, 9])
def test_every_two_meet_once(size: int) -> None:
    rounds = [list(_opponents(rank, size)) for rank in range(size)]
    met = set()
    for turn in zip(*rounds, strict=True):
        for rank, other in enumerate(turn):
            if other is not None:
                assert turn[other] == rank != other
                met.add((min(rank, other), max(rank, other)))
    assert len(met) == size * (size - 1) // 2
    assert sum(other is not None for own in rounds for other in own) == 2 * len(met)


def pairs(hosts: str, slow: dict[tuple[int, int], float]) -> Pairs:
    """Ranks on `hosts`, a letter each; 1 ns a byte inside, 10 between, and times `slow`."""
    size = len(hosts)
    betas = [[0.0] * size for _ in range(size)]
    for a in range(size):
        for b in range(size):
            times = slow.get((min(a, b), max(a, b)), 1.0)
            betas[a][b] = 0.0 if a == b else times * (1e-9 if hosts[a] == hosts[b] else 1e-8)
    alphas = [[0.0 if a == b else 1e-5 for b in range(size)] for a in range(size)]
    return Pairs(tuple(hosts), tuple(map(tuple, alphas)), tuple(map(tuple, betas)))


def test_who_is_slow() -> None:
    assert pairs("aabb", {}).slow() == []
    assert pairs("ab", {(0, 1): 9}).slow() == [], "nothing to compare with"
    (host,) = pairs("abcd", {(0, 2): 3, (1, 2): 3, (2, 3): 3}).slow()
    assert host.startswith("host c: messages to and from it take 3.0 times")
    (of_three,) = pairs("abc", {(0, 2): 3, (1, 2): 3}).slow()
    assert of_three.startswith("host c:")
    (cable,) = pairs("abcd", {(1, 3): 4}).slow()
    assert cable.startswith("rank 1 on b and rank 3 on d: messages between them take 4.0 times")
    of_b = {(min(a, b), max(a, b)): 5.0 for a in (0, 1, 4, 5) for b in (2, 3)}
    (host,) = pairs("aabbcc", of_b).slow()
    assert host.startswith("host b:")
    (rank,) = pairs("aaaa", {(0, 3): 2, (1, 3): 2, (2, 3): 2}).slow()
    assert rank.startswith("rank 3 on a:")


def test_inside_and_between() -> None:
    its = pairs("aabb", {(0, 2): 3})
    assert its.median(inside=True) == pytest.approx((1e-5, 1e-9))
    assert its.median(inside=False) == pytest.approx((1e-5, 1e-8))
    assert pairs("ab", {}).median(inside=True) is None
    assert its.lines()[:2] == ["messages inside a host: 10 us, 1,000 MB/s", "messages between hosts: 10 us, 100 MB/s"]


@pytest.mark.ranks
def test_a_job_over_mpi_measures_them(tmp_path: Path) -> None:
    framework = INSTALLED[0]
    if not adapter_class(framework).job_class.horovod.mpi_built():
        pytest.skip("Horovod is built without MPI")
    pytest.importorskip("mpi4py")
    out = tmp_path / "link.json"
    ended = launcher.hvd_lm(
        3, "measure", "--out", out, "--seconds", "3", "--largest-mb", "1", "--framework", framework, controller="mpi"
    )
    ended.expect_success()
    assert "messages inside a host:" in ended.output
    link = read_link(out)
    assert link.pairs is not None
    assert len(link.pairs.hosts) == 3
    for a in range(3):
        for b in range(3):
            assert (link.pairs.alphas[a][b] > 0) == (a != b)
            assert link.pairs.alphas[a][b] == link.pairs.alphas[b][a] < 1
    values = json.loads(out.read_text())
    del values["pairs"]["alphas"][0]
    out.write_text(json.dumps(values))
    with pytest.raises(DataError, match="pairs are not of 3 ranks"):
        read_link(out)
    del values["pairs"]
    out.write_text(json.dumps(values))
    assert read_link(out).pairs is None, "of an older version"
    write_link(link, out)
    assert asdict(read_link(out)) == asdict(link)
