"""Workers come and go: training goes on with who is there, and every token is read once."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import elastic
import launcher
import numpy as np
import pools
import pytest
from conftest import INSTALLED
from faults import places
from horovod.runner.common.util import codec
from horovod.runner.common.util.hosts import HostInfo, get_host_assignments
from horovod.runner.elastic.rendezvous import PUT_WORKER_ADDRESSES
from horovod.runner.elastic.worker import HostUpdateResult, WorkerNotificationClient
from horovod.runner.http.http_server import RendezvousServer

import hvd_lm
from hvd_lm import checkpoint as checkpoints
from hvd_lm.adapters.membership import Membership
from hvd_lm.config import CommunicationConfig, RunConfig, TopologyConfig
from hvd_lm.data.corpus import embedded_corpus
from hvd_lm.data.texts import read_texts
from hvd_lm.errors import ConfigError, LostWorkerError, RemovedError
from hvd_lm.job.launcher import launched_local_size, launched_rank, launched_size
from hvd_lm.job.rendezvous import PLACES, Store
from hvd_lm.job.stop import Stop
from hvd_lm.training.replicas import checksum
from hvd_lm.training.schedule import Schedule

SMALL = [*launcher.SMALL, "--batch-size", "4", "--backward-passes-per-step", "2", "--threads", "1", "--dropout", "0.2"]
three_hosts = pytest.mark.skipif(len(elastic.HOSTS) < 3, reason="this machine has fewer than 3 names")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Words enough for some hundred steps."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n".join(embedded_corpus().splitlines()[:1500]))
    return path


def check_run(job: elastic.Job, text: Path, epochs: int) -> None:
    """Its metrics are those of one run, and it has read its text."""
    rows = launcher.metrics(job.out)
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    tokens = len(read_texts(RunConfig().data.__class__(data=(text,)), 1000).training)
    assert rows[-1]["tokens"] == epochs * tokens
    elastic.assert_each_token_once(job, tokens, epochs)
    assert checkpoints.load(job.out).step == len(rows)


@pytest.mark.ranks
@three_hosts
def test_a_worker_is_killed_and_another_comes(text: Path, tmp_path: Path) -> None:
    """Rank 0, mostly, which writes the run: the next one has its folder at once, and goes on with its rows."""
    flags = ["--framework", INSTALLED[0], *SMALL, "--data", text, "--epochs", "10", "--decay", "cosine", "--validation-every", "20"]
    with elastic.job(tmp_path / "job", elastic.HOSTS[:2], *flags) as job:
        job.until_ranks(2)
        job.workers[0].kill()
        job.until_ranks(1)
        job.offer(*elastic.HOSTS[:3])  # that of the lost worker stays out
        job.until_ranks(2)
        job.ended(300).expect_success()
    check_run(job, text, 10)
    rates = [row["learning_rate"] for row in launcher.metrics(job.out)]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(1e-4)


@pytest.mark.ranks
def test_too_few_workers_end_with_a_checkpoint(tmp_path: Path) -> None:
    flags = ["--framework", INSTALLED[0], *SMALL, *launcher.ENDLESS]
    launch = ["--elastic-timeout", "5"]
    with elastic.job(tmp_path / "job", elastic.HOSTS[:2], *flags, least=2, launch=launch) as job:
        job.until_ranks(2)
        job.until(partial(job.has_made, 3))
        job.workers[1].kill()
        ended = job.ended()
    assert ended.code
    saved = checkpoints.load(job.out).step
    # If rank 0 was killed, it may have written a step in whose midst the other still was.
    assert saved in {(steps := len(launcher.metrics(job.out))), steps - 1}
    assert f"the weights of step {saved} are in {job.out}: go on with --resume auto" in ended.output


@pytest.mark.cluster
@pytest.mark.ranks
def test_an_elastic_job_stops(tmp_path: Path) -> None:
    with elastic.job(tmp_path / "job", elastic.HOSTS[:2], "--framework", INSTALLED[0], *SMALL, *launcher.ENDLESS) as job:
        job.until_ranks(2)
        job.process.send_signal(signal.SIGTERM)
        ended = job.ended()
    assert "stopped after step" in ended.output
    assert ended.code == 5
    assert checkpoints.load(job.out).step == len(launcher.metrics(job.out))


@pytest.mark.ranks
def test_the_furthest_worker_brings_rank_0_to_where_it_is(framework: str, tmp_path: Path) -> None:
    pools.hvd_lm(2, "train", "--framework", framework, *SMALL, "--steps", "2", "--out", tmp_path / "run")
    saved = checkpoints.load(tmp_path / "run")
    of_rank_0, of_rank_1 = pools.body("passed_on", 2, framework, tmp_path / "run")
    assert of_rank_1 is None
    assert of_rank_0 == {
        "step": 2,
        "weights": checksum(saved.weights),
        "moments": checksum(saved.optimizer_state.moments),
        "states": checksum({"": saved.progress.lstm_state_2SU}),
        "applied": 2,
    }


@pytest.mark.cluster
@pytest.mark.ranks
def test_a_host_vanishes(framework: str, text: Path, tmp_path: Path) -> None:
    """By its cable: nothing tells the launcher of it but its own ssh (patch launcher-ssh)."""
    flags = ["--framework", framework, *SMALL, "--data", text, "--epochs", "20"]
    with (
        places.two_hosts(tmp_path / "hosts") as hosts,
        elastic.job(tmp_path / "job", hosts.names, *flags, network=places.LINK, where=hosts.on_first) as job,
    ):
        job.until_ranks(2, 120)
        hosts.cut()
        job.until_ranks(1, 90)
        job.offer(hosts.names[0])
        job.ended(300).expect_success()
    check_run(job, text, 20)


@pytest.mark.cluster
@pytest.mark.ranks
@three_hosts
@pytest.mark.parametrize("seed", range(5))
def test_three_two_three(framework: str, seed: int, tmp_path: Path) -> None:
    """Any worker, at any time; with as many tokens in a step, the loss is that of a run of which nobody knew."""
    text, tokens, epochs = tmp_path / "text.txt", 3 * 2 * 4 * 16, 4
    text.write_text(embedded_corpus())
    flags = ["--framework", framework, *SMALL, "--data", text, "--epochs", str(epochs), "--target-batch", str(tokens)]
    chance = random.Random(seed)
    with elastic.job(tmp_path / "job", elastic.HOSTS[:3], *flags, launch=elastic.COOLDOWN) as job:
        job.until_ranks(3, 120)
        for _ in range(2):
            wanted = job.step + chance.randrange(20)
            job.until(partial(job.has_made, wanted))
            chance.choice(job.workers).kill()
            took = job.until_ranks(2)
            assert took < 30
            job.until_ranks(3, 90)
        job.ended(300).expect_success()
    check_run(job, text, epochs)
    undisturbed = tmp_path / "undisturbed"
    pools.hvd_lm(3, "train", *flags, "--out", undisturbed)
    rows, theirs = launcher.metrics(job.out), launcher.metrics(undisturbed)
    np.testing.assert_allclose(by_epochs(rows), by_epochs(theirs), rtol=0.02)
    assert np.median(np.diff([row["tokens"] for row in rows])) == tokens


def by_epochs(rows: list[dict[str, float]]) -> np.ndarray:
    """Loss of training over each epoch, and of validation after it: the same tokens, in whatever order."""
    epochs = range(1, int(rows[-1]["epoch"]) + 1)
    training = [np.mean([row["loss"] for row in rows if row["epoch"] == epoch]) for epoch in epochs]
    return np.array([training, [row["validation_loss"] for row in rows if "validation_loss" in row]])


# --- what one process does -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "topology", [TopologyConfig(model_parallel=2), TopologyConfig(split="optimizer"), TopologyConfig(data_parallel=2)]
)
def test_every_worker_has_the_whole_model(topology: TopologyConfig) -> None:
    with pytest.raises(ConfigError, match="--elastic needs a whole model on every worker"):
        RunConfig(elastic=True, topology=topology)


def test_adasum_is_not_elastic() -> None:
    with pytest.raises(ConfigError, match="without --elastic"):
        RunConfig(elastic=True, communication=CommunicationConfig(reduction="adasum"))


def test_without_an_elastic_launcher(tmp_path: Path) -> None:
    ended = launcher.run("hvd-lm", "train", "--elastic", "--framework", INSTALLED[0], "--out", tmp_path / "run")
    assert ended.code == 2
    assert "--elastic needs a launcher that lets workers come and go" in ended.output
    assert not (tmp_path / "run").exists()


def test_a_job_without_the_flag_is_refused_by_an_elastic_launcher(framework: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOROVOD_ELASTIC", "1")
    with pytest.raises(ConfigError, match="train with --elastic"):
        hvd_lm.adapter(framework)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """That of a launcher which has started this process as rank 0 of 2."""
    server = RendezvousServer()
    port = server.start()
    server.init(get_host_assignments([HostInfo("localhost", 2)], 2))
    place = {"RANK": 0, "SIZE": 2, "LOCAL_RANK": 0, "LOCAL_SIZE": 2, "CROSS_RANK": 0, "CROSS_SIZE": 1}
    meeting = {"ELASTIC": 1, "HOSTNAME": "localhost", "GLOO_RENDEZVOUS_ADDR": "127.0.0.1", "GLOO_RENDEZVOUS_PORT": port}
    for name, value in (place | meeting | {"GLOO_IFACE": "lo"}).items():
        monkeypatch.setenv(f"HOROVOD_{name}", str(value))
    yield Store("127.0.0.1", port)
    server.stop()
    server._httpd.server_close()


@pytest.fixture
def membership(store: Store) -> Iterator[Membership]:  # noqa: ARG001 - where it finds its launcher
    found = Membership(Stop())
    yield found
    found.close()


def never(_: float) -> None:
    """Of one that need not wait."""


def test_the_store_of_the_launcher(store: Store) -> None:
    assert store.get("scope", "key") is None
    store.put("scope", "key", b"a value")
    assert store.get("scope", "key") == b"a value"
    assert store.get("scope", "another") is None
    with pytest.raises(OSError, match="refused"):
        Store(store.address, 1).get("scope", "key")


def test_workers_meet(store: Store, membership: Membership) -> None:
    store.put("hvd_lm.step", "1", b'{"step": 7}')
    assert membership.meet("step", {"step": 6}) == [{"step": 6}, {"step": 7}]


def test_a_worker_without_a_sign_of_life_is_lost(membership: Membership, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hvd_lm.adapters.membership.SECONDS_OF_SILENCE", 0.3)
    with pytest.raises(LostWorkerError, match="rank 1 has given no sign of life"):
        membership.meet("step", None)


def test_a_new_place(store: Store, membership: Membership) -> None:
    store.put(PLACES, "localhost:0", b"2,3,0,1,2,3")
    membership.take_place(never)
    assert (launched_rank(), launched_size(), launched_local_size()) == (2, 3, 1)
    store.put(PLACES, "localhost:0", b"-1,-1,-1,-1,-1,-1")
    with pytest.raises(RemovedError, match="this host has left the job"):
        membership.take_place(never)
    assert launched_rank() == 2


def test_no_new_place(membership: Membership) -> None:
    """The answer of a launcher that is about to end."""
    with pytest.raises(LostWorkerError, match="too few hosts are left for --min-np"):
        membership.take_place(never)


def test_the_launcher_tells_of_hosts(store: Store) -> None:
    stop = Stop()
    heard = Membership(stop)
    try:
        addresses, key = codec.loads_base64(store.get(PUT_WORKER_ADDRESSES, "localhost:0"))
        WorkerNotificationClient(addresses, key, verbose=0).notify_hosts_updated(0, HostUpdateResult.added)
        assert stop.members_change
    finally:
        heard.close()


def test_a_schedule_ends_with_the_run() -> None:
    """Whatever the number of steps that the rest of it takes; of as many as at first it takes whole steps."""
    schedule = Schedule(0, 10)
    for done in range(4):
        schedule.step = schedule.coming(10 - done)
        assert schedule.step == done + 1
    for left in range(12, 0, -1):
        schedule.step = schedule.coming(left)
    assert schedule.step == pytest.approx(10)
