"""How many threads a rank takes unless told: its cores, shared by the ranks on them, within what a container may use."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import INSTALLED
from test_generation import save_random_model

from hvd_lm.config import ModelConfig
from hvd_lm.generation.text import TextGenerator
from hvd_lm.job import threads
from hvd_lm.job.threads import cpu_quota, default_threads, worth_waking
from hvd_lm.model.cost import multiply_adds

SPIN = """
import os
import hvd_lm.adapters.pytorch
import torch
print(os.environ.get("GOMP_SPINCOUNT"), torch.__config__.parallel_info().count("OpenMP"))
"""


@pytest.mark.skipif("torch" not in INSTALLED, reason="PyTorch is not installed")
@pytest.mark.parametrize(("given", "taken"), [({}, "100"), ({"GOMP_SPINCOUNT": "77"}, "77"), ({"OMP_WAIT_POLICY": "active"}, None)])
def test_threads_of_openmp_soon_sleep_when_they_wait(given: dict[str, str], taken: str | None) -> None:
    """OpenMP itself tells what it took; afterwards the environment is as before."""
    environment = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    environment |= {"OMP_DISPLAY_ENV": "verbose", **given}
    ended = subprocess.run([sys.executable, "-c", SPIN], env=environment, capture_output=True, text=True, check=True)
    assert ended.stdout.split()[0] == str(given.get("GOMP_SPINCOUNT"))
    spins = re.findall(r"GOMP_SPINCOUNT = '(\d+)'", ended.stderr)
    assert spins
    assert taken is None or spins[-1] == taken


class Machine:
    """A machine of so many cores, as a rank sees it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._patch = monkeypatch
        self.has(cores=64)

    def has(
        self, cores: int, *, affinity: int | None = None, ranks: int = 1, bound: bool = False, quota: float | None = None
    ) -> None:
        self._patch.setattr(os, "cpu_count", lambda: cores)
        self._patch.setattr(os, "sched_getaffinity", lambda _: set(range(affinity or cores)))
        self._patch.setattr(threads, "launched_local_size", lambda: ranks)
        self._patch.setattr(threads, "is_bound", lambda: bound)
        self._patch.setattr(threads, "cpu_quota", lambda: quota)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def test_cores_are_shared_by_the_ranks_of_the_machine(machine: Machine) -> None:
    machine.has(cores=64, ranks=4)
    assert default_threads() == 16
    machine.has(cores=2, ranks=7)
    assert default_threads() == 1


def test_a_set_of_cores_that_all_ranks_share_is_divided(machine: Machine) -> None:
    machine.has(cores=64, affinity=8, ranks=4)
    assert default_threads() == 2


def test_cores_of_its_own_are_not_divided_again(machine: Machine) -> None:
    machine.has(cores=64, affinity=16, ranks=4, bound=True)
    assert default_threads() == 16
    machine.has(cores=2, affinity=1, ranks=2, bound=True)
    assert default_threads() == 1


def test_ranks_that_are_bound_to_the_same_socket_share_it(machine: Machine) -> None:
    machine.has(cores=64, affinity=32, ranks=8, bound=True)
    assert default_threads() == 8


def test_a_container_has_the_time_that_it_was_given(machine: Machine) -> None:
    machine.has(cores=64, quota=4.0)
    assert default_threads() == 4
    machine.has(cores=64, quota=4.0, ranks=2)
    assert default_threads() == 2
    machine.has(cores=64, quota=0.5)
    assert default_threads() == 1
    machine.has(cores=2, quota=8.0)
    assert default_threads() == 2


def groups(root: Path, own: str, **limits: str) -> float | None:
    """The quota of a process in the groups `own` where `limits` maps a file (``__`` for /) to its content."""
    for name, content in limits.items():
        file = root / name.replace("__", "/").replace("cpu_", "cpu.")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    (root / "own").write_text(own)
    return cpu_quota(root / "own", root)


def test_the_smallest_limit_of_nested_groups_holds(tmp_path: Path) -> None:
    limits = {"a__b__cpu_max": "max 100000\n", "a__cpu_max": "150000 100000\n", "cpu_max": "400000 100000\n"}
    assert groups(tmp_path, "0::/a/b\n", **limits) == 1.5


def test_a_container_sees_its_own_group_as_the_top(tmp_path: Path) -> None:
    assert groups(tmp_path, "0::/\n", cpu_max="200000 100000\n") == 2.0


def test_control_groups_of_version_1(tmp_path: Path) -> None:
    limits = {"cpu__job__cpu_cfs_quota_us": "250000", "cpu__job__cpu_cfs_period_us": "100000"}
    own = "4:memory:/elsewhere\n3:cpu,cpuacct:/job\n0::/\n"
    assert groups(tmp_path, own, **limits, cpu__cpu_cfs_quota_us="-1", cpu__cpu_cfs_period_us="100000") == 2.5


@pytest.mark.parametrize(
    ("multiply_adds", "threads", "worth"),
    [(0, 8, 1), (2_640_000, 2, 1), (7_900_000, 2, 1), (9_000_000, 2, 2), (27_000_000, 16, 6), (10**9, 4, 4)],
)
def test_a_short_call_wakes_few_threads(multiply_adds: int, threads: int, worth: int) -> None:
    assert worth_waking(multiply_adds, threads) == worth


def test_multiply_adds_of_a_token() -> None:
    """Gates of two layers, and the logits; biases are added."""
    model = ModelConfig(vocabulary_size=10000, embedding_size=300, hidden_size=1024)
    layers = 4 * 1024 * (300 + 1024) + 4 * 1024 * 2048 + 2 * 4 * 1024
    assert multiply_adds(model) == layers + 10000 * 1025
    assert multiply_adds(replace(model, embedding_size=1024, tie_embedding=True)) == layers + 4 * 1024 * 724 + 10000 * 1025


@pytest.mark.skipif("torch" not in INSTALLED, reason="TensorFlow's threads are given once")
def test_a_text_of_a_small_model_is_written_by_one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless --threads says otherwise; afterwards all are there again."""
    import torch

    before = torch.get_num_threads()
    seen: list[int] = []

    def noting(forward: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any) -> Any:
            seen.append(torch.get_num_threads())
            return forward(*given)

        return call

    try:
        for chosen in (True, False):
            writer = TextGenerator(save_random_model(tmp_path), threads=2)
            writer._adapter.job.chooses_threads = chosen
            monkeypatch.setattr(writer._adapter, "_forward", noting(writer._adapter._forward))  # type: ignore[attr-defined]
            assert len(writer.samples("the", length=3)) == 1
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert seen == [1, 1, 1, 2, 2, 2]


def test_no_limit(tmp_path: Path) -> None:
    assert groups(tmp_path, "0::/a\n", a__cpu_max="max 100000\n") is None
    assert cpu_quota(tmp_path / "absent", tmp_path) is None
