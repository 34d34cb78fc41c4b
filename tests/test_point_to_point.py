"""Messages by mpi4py where MPI launches: what passes, what a pipeline makes of them, and what goes on without."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import launcher
import numpy as np
import pools
import pytest
from conftest import INSTALLED
from grids import alone, assert_same_figures, on_grid

from hvd_lm.adapters import adapter_class
from hvd_lm.errors import ConfigError
from hvd_lm.job import doctor, point_to_point
from hvd_lm.job.point_to_point import load_mpi, obstacle

STEPS = 15


@pytest.fixture
def over_mpi(framework: str) -> str:
    """A framework whose ranks can send to each other."""
    if not adapter_class(framework).job_class.horovod.mpi_built():
        pytest.skip("Horovod is built without MPI")
    pytest.importorskip("mpi4py")
    return framework


@pytest.mark.ranks
def test_messages_arrive_in_order_beside_horovod(over_mpi: str) -> None:
    for rank, found in enumerate(pools.body("messages", 2, over_mpi, controller="mpi")):
        assert found["right"]
        waited, waited_since = found["waited"]
        assert waited > 0 == waited_since
        assert found["said"] == f"rank {1 - rank} has kept this one waiting for 0.1 seconds: see what it does"


@pytest.mark.ranks
def test_figures_of_a_pipeline_are_those_of_one_process(over_mpi: str) -> None:
    settings: dict[str, Any] = {"split": "layers", "model_parallel": 3, "steps": STEPS}
    of_ranks = on_grid(over_mpi, 3, "three layers", controller="mpi", **settings)
    assert [result["linked"] for result in of_ranks] == [["above"], ["above", "below"], ["below"]]
    assert_same_figures(of_ranks, alone(over_mpi, "three layers")[:STEPS])


@pytest.mark.ranks
@pytest.mark.parametrize("framework", INSTALLED[:1])
def test_two_runs_share_one_mpirun(over_mpi: str, tmp_path: Path) -> None:
    """A pipeline, and data parallelism, on two ranks each: the losses of one process."""
    words = ["--framework", over_mpi, *launcher.SMALL, "--backward-passes-per-step", "2", "--batch-size", "4", "--steps", "3"]
    pools.hvd_lm(1, "train", *words, "--out", tmp_path / "alone").expect_success()
    found = launcher.body("two_runs", 4, over_mpi, tmp_path, controller="mpi")
    assert found == [{"steps": 3, "said": "this process has joined a job of other ranks: use one comm= in a process"}] * 4
    for run in ("layers", "data"):
        np.testing.assert_allclose(launcher.losses(tmp_path / run), launcher.losses(tmp_path / "alone"), rtol=1e-5)


# --- where they cannot be sent ---------------------------------------------------------------------------


def horovod(*, over_mpi: bool = True, nccl: bool = False, threads: bool = True) -> Any:
    return SimpleNamespace(mpi_enabled=lambda: over_mpi, nccl_built=lambda: nccl, mpi_threads_supported=lambda: threads)


def mpi(*, initialized: bool = True) -> Any:
    return SimpleNamespace(Is_initialized=lambda: initialized, Get_library_version=lambda: "Open MPI v4.1.4, package: Debian\0")


@pytest.mark.parametrize(
    ("its", "loaded", "words"),
    [
        (horovod(over_mpi=False), mpi(), "Horovod does not run over MPI"),
        (horovod(nccl=True), mpi(), "leaves them on the GPU"),
        (horovod(), mpi(initialized=False), r"another MPI \(Open MPI v4.1.4\)"),
        (horovod(threads=False), mpi(), "does not give MPI_THREAD_MULTIPLE"),
        (horovod(), mpi(), "^$"),
    ],
)
def test_what_is_in_the_way_is_told(its: Any, loaded: Any, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(point_to_point, "load_mpi", lambda: loaded)
    assert re.search(words, obstacle(its))


def test_a_process_outside_of_a_communicator_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = object()
    monkeypatch.setattr(point_to_point, "load_mpi", lambda: SimpleNamespace(COMM_NULL=nothing))
    with pytest.raises(ConfigError, match="comm= is no communicator of this process"), point_to_point.part_of_job(nothing):
        pass


def test_doctor_says_that_mpi4py_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(point_to_point.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ImportError, match="mpi4py is not installed"):
        load_mpi()
    said = str(doctor.mpi4py_finding())
    assert said.startswith("[note] mpi4py: mpi4py is not installed: pip install 'hvd_lm[mpi]'. Without it --split layers")


def test_doctor_says_that_mpi4py_takes_another_mpi(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mpi4py")
    loaded = iter([{"/usr/lib/libmpi.so.40"}, {"/usr/lib/libmpi.so.40", "/opt/lib/libmpi.so.12"}])
    monkeypatch.setattr(point_to_point, "loaded_libraries", lambda: next(loaded))
    monkeypatch.setattr(point_to_point, "load_mpi", mpi)
    said = str(doctor.mpi4py_finding())
    assert said.startswith("[note] mpi4py: ")
    assert "from /opt/lib/libmpi.so.12, while Horovod is built with /usr/lib/libmpi.so.40" in said
