"""The environment in which Horovod and MPI start: ours where the user has said nothing, and gone afterwards."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import launcher
import pools
import pytest
from conftest import INSTALLED

from hvd_lm.config import CommunicationConfig
from hvd_lm.job.levers import horovod_environment, patience

ENDS, WARNS = "HOROVOD_STALL_SHUTDOWN_TIME_SECONDS", "HOROVOD_STALL_CHECK_TIME_SECONDS"
FUSION = "HOROVOD_FUSION_THRESHOLD"
PIECES = "OMPI_MCA_btl_tcp_rdma_pipeline_frag_size"
RULES = "OMPI_MCA_coll_tuned_dynamic_rules_filename"


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (FUSION, PIECES, RULES):
        monkeypatch.delenv(name, raising=False)


def test_the_environment_is_as_before_afterwards() -> None:
    before = dict(os.environ)
    with horovod_environment(CommunicationConfig()):
        assert os.environ[PIECES] == "131072"
        assert Path(os.environ[RULES]).is_file()
        assert dict(os.environ) != before
    assert dict(os.environ) == before


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PIECES, "4096")
    monkeypatch.setenv(FUSION, "7")
    with horovod_environment(CommunicationConfig(fusion_threshold_mb=3)):
        assert (os.environ[PIECES], os.environ[FUSION]) == ("4096", "7")
    assert (os.environ[PIECES], os.environ[FUSION]) == ("4096", "7")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (CommunicationConfig(), "0"),
        (CommunicationConfig(fusion_threshold_mb=2), "2097152"),
        (CommunicationConfig(autotune=True), None),
        (CommunicationConfig(autotune=True, fusion_threshold_mb=0), "0"),
    ],
)
def test_nothing_is_fused_unless_it_is_asked_for(config: CommunicationConfig, expected: str | None) -> None:
    """A threshold that is set is none that Horovod searches."""
    with horovod_environment(config):
        assert os.environ.get(FUSION) == expected


@pytest.mark.parametrize(("seconds", "told", "warned"), [(600, None, "60"), (20, None, "10"), (0, None, None), (600, "30", "15")])
def test_horovod_warns_before_it_ends_a_job(
    seconds: int, told: str | None, warned: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would end none otherwise."""
    for name in (ENDS, WARNS):
        monkeypatch.delenv(name, raising=False)
    if told:
        monkeypatch.setenv(ENDS, told)
    config = CommunicationConfig(stall_shutdown_seconds=seconds)
    assert patience(config) == float(told or seconds)
    with horovod_environment(config):
        assert os.environ[ENDS] == (told or str(seconds))
        assert os.environ.get(WARNS) == warned


@pytest.mark.ranks
def test_openmpi_reduces_large_tensors_in_a_ring(framework: str) -> None:
    """A ring begins each third of the tensor at another rank, so that each is summed in another order."""
    assert pools.body("summation_order", 3, framework, "1000000", controller="mpi") == [[0.0, 1.0]] * 3


@pytest.mark.ranks
def test_a_host_whose_name_has_no_address() -> None:
    """As of many containers: connections are those of the interface, not of the name (patch gloo-interface)."""
    under_another_name = ["unshare", "--uts", "bash", "-c", 'hostname no-address && exec "$@"', "bash"]
    try:
        subprocess.run([*under_another_name, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a host may not be named here: {error}")
    all_reduce = launcher.of_ranks(2, "hvd-lm", "doctor", "--all-reduce", INSTALLED[0])
    assert "all-reduce is right" in launcher.run(*under_another_name, *all_reduce).expect_success().output
