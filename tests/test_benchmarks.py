"""The pure parts of the bench: what it computes, prints and would run. That it measures is seen by running it."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import exposed, figures, launching, links, predicted, relay, report, workload
from benchmarks.catalog import PEERS
from benchmarks.compare import choose, read_ours, read_script
from benchmarks.figures import Outcome, Spread
from benchmarks.launching import Job
from benchmarks.links import Host, Network
from benchmarks.workload import Workload
from hvd_lm.data.streams import Streams
from hvd_lm.model.weights import initial_weights

SMALL = workload.small(Workload(accumulation=2))
LOCAL = Network(links.LOOPBACK, (Host("localhost", "127.0.0.1"),), "lo")
LIMITED = Network("100mbit", links.plan_hosts(2, "prefix"), "eth0", Path("/ssh"))


def outcome(peer: str, number: int = 1, rate: float = 100.0, losses: tuple[float, ...] = (6.0, 5.0), **changes: object) -> Outcome:
    known = {"size": 2, "maths": "exact", "is_ours": peer.startswith("ours"), "seconds": [1.0], "mean_seconds": [1.0], "load": 0.0}
    values = {**known, "peak_bytes": [10**9], "sent_bytes": 10**6, **changes}
    return Outcome(peer=peer, round=number, tokens_per_second=rate, losses=list(losses), **values)  # type: ignore[arg-type]


# --- figures ---------------------------------------------------------------------------------------------


def test_spread_is_median_and_quartiles() -> None:
    assert Spread.of([4.0, 1.0, 2.0, 3.0, 5.0]) == Spread(3.0, 2.0, 4.0)
    assert Spread.of([7.0]) == Spread(7.0, 7.0, 7.0)
    assert f"{Spread(1.0, 0.5, 2.0):.1f}" == "1.0 [0.5, 2.0]"


def test_ratio_pairs_the_rounds() -> None:
    runs = [outcome("ours", 1, 100), outcome("ours", 2, 300), outcome("peer", 2, 100), outcome("peer", 1, 200)]
    assert figures.ratio(runs, "ours", "peer") == Spread.of([0.5, 3.0])
    assert figures.ratio_of_medians(runs, "ours", "peer") == pytest.approx(200 / 150)
    assert figures.ratio([*runs, outcome("late", 3)], "ours", "late") is None


def test_every_round_starts_with_another_peer() -> None:
    assert [figures.rotated(["a", "b", "c"], by)[0] for by in range(4)] == ["a", "b", "c", "a"]
    assert figures.rotated([], 1) == []


def test_losses_are_compared_within_the_same_number_of_ranks() -> None:
    runs = [
        outcome("ours"),
        outcome("peer", losses=(6.0, 5.01)),
        outcome("half", losses=(6.0, 5.01), maths="fp16"),
        outcome("single", losses=(3.0, 3.0), size=1),
    ]
    checks = {check.peer: check for check in figures.check_losses(runs)}
    assert set(checks) == {"ours", "peer", "half"}
    assert checks["peer"].difference == pytest.approx(0.002)
    assert [checks[peer].agrees for peer in ("ours", "peer", "half")] == [True, False, True]


def test_a_run_with_other_windows_is_no_equal() -> None:
    with pytest.raises(ValueError, match="longer"):
        figures.loss_difference([1.0], [1.0, 2.0])


def test_bound_of_a_ring() -> None:
    assert figures.ring_bound(100.0, 2, 10.0) == pytest.approx(10.0)
    assert figures.ring_bound(100.0, 8, 10.0) == pytest.approx(17.5)


def test_exposed_communication_is_what_copies_do_not_spend() -> None:
    """Beyond the slowest of them, and beyond their mean."""
    copies = outcome("copies", size=1, seconds=[1.5, 3.0, 1.5], mean_seconds=[1.0, 3.0, 1.0])
    runs = [outcome("ours", seconds=[3.0, 5.0, 4.0]), copies]
    assert figures.exposed_seconds(runs, "ours", "copies") == (Spread.of([2.5]), Spread.of([3.0]))
    assert figures.exposed_seconds(runs, "ours", "nobody") is None


def test_the_slowest_rank_of_a_window_waits_least() -> None:
    """Windows of the warm-up do not count."""
    found = exposed.summary([[9.0, 1.0, 4.0], [9.0, 3.0, 2.0]], [20.0, 10.0, 11.0], warmup=1)
    assert found == {"seconds": [10.0, 11.0], "slowest": [1.0, 2.0], "fastest": [3.0, 4.0]}


def test_table_is_markdown() -> None:
    assert figures.markdown_table(["a", "b"], [["x", "1"]]) == "| a | b |\n| --- | ---: |\n| x | 1 |\n"


# --- the work --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["zipf", "embedded"])
def test_text_and_tokens_serve_all_windows(tmp_path: Path, text: str) -> None:
    workload.prepare(replace(SMALL, text=text), tmp_path)  # type: ignore[arg-type]
    work, tokens, first_input = workload.read(tmp_path)
    assert work.vocabulary_size == SMALL.vocabulary_size
    assert tokens.max() < work.vocabulary_size
    for ranks in (1, work.ranks):
        streams = Streams(
            tokens,
            first_input=first_input,
            batch_size=work.batch_size,
            sequence_length=work.sequence_length,
            data_size=ranks,
        )
        window = list(streams.windows(work.accumulation))[work.warmup + work.windows - 1]
        assert window.target_count == work.tokens_per_window(ranks)


def test_parameters_are_those_of_the_model() -> None:
    for work in (SMALL, replace(SMALL, layers=3)):
        weights = initial_weights(work.model, 1)
        assert work.parameters == sum(value.size for value in weights.values())
        kernels = sum(value.size for name, value in weights.items() if "kernel" in name)
        assert work.flops_per_token == 6 * kernels
        tokens, per_layer = work.batch_size * work.sequence_length, 6 * work.hidden_size
        assert work.activation_bytes == 4 * tokens * (work.embedding_size + work.layers * per_layer + 2 * work.vocabulary_size)


# --- links and launches ----------------------------------------------------------------------------------


def test_network_commands() -> None:
    commands = [" ".join(command) for command in links.up_commands(LIMITED, "switch")]
    assert "ip link add eth0 netns prefixhost1 type veth peer name port1 netns switch" in commands
    limited = [command for command in commands if "tbf rate 100mbit" in command]
    assert [command.split()[2] for command in limited] == ["prefixhost0", "switch", "prefixhost1", "switch"]


def test_a_cable_with_a_delay_is_a_relay_between_interfaces() -> None:
    network = replace(LIMITED, rate="100mbit+5ms")
    assert links.delay_seconds(network.rate) == 5e-3
    slow = replace(network, slow_hosts=1)
    assert [links.bytes_per_second(slow, host) for host in slow.hosts] == [12.5e6, 6.25e6]
    assert any(
        "prefixhost1" in command and "tbf rate 50000000bit" in command for command in map(" ".join, links.long_commands(slow))
    )
    commands = [" ".join(command) for command in links.long_commands(network)]
    assert "tc -n prefixhost1 qdisc add dev eth0 root tbf rate 100mbit burst 256kb latency 50ms" in commands
    assert not any("bridge" in command for command in commands)


def test_a_relay_delays_and_limits() -> None:
    near, far = (socket.socketpair(type=socket.SOCK_SEQPACKET) for _ in range(2))
    its = relay.Relay(delay=0.05)
    for pair, address in ((near, "10.0.0.1"), (far, "10.0.0.2")):
        its.connect(pair[1].fileno(), address, bytes_per_second=1e5)
    packet = bytes(16) + socket.inet_aton("10.0.0.2") + bytes(980)
    began = time.monotonic()
    near[0].send(bytes(16) + socket.inet_aton("10.0.0.9"))  # to nobody
    for _ in range(10):
        near[0].send(packet)
    assert far[0].recv(2000) == packet
    assert time.monotonic() - began >= 0.05 + 1000 / 1e5
    for _ in range(9):
        assert far[0].recv(2000) == packet
    assert time.monotonic() - began >= 0.05 + 10_000 / 1e5


@pytest.mark.parametrize("rate", ["100mbit", "1gbit", "2.5gbit", "loopback", "100mbit+5ms", "50mbit+0.5ms"])
def test_rates(rate: str) -> None:
    links.check_rate(rate)


@pytest.mark.parametrize("rate", ["", "fast", "100", "100mbit; reboot", "100mbit+5", "5ms", "loopback+5ms"])
def test_no_rates(rate: str) -> None:
    with pytest.raises(links.LinkError, match="a link is loopback or a rate"):
        links.check_rate(rate)


def test_without_root_a_limited_link_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(links.LinkError, match=r"needs root.*or use --link loopback"), links.connect("1gbit", 2):
        pass


@pytest.mark.parametrize(
    "arguments",
    [
        ["-o", "StrictHostKeyChecking=no", "near", "echo", "a", "b"],
        ["-x", "near", "-p", "22", "-o", "ConnectTimeout=3", "echo a b"],
        ["-oBatchMode=yes", "near", "cd / && echo a b"],
    ],
)
def test_stand_in_for_ssh(tmp_path: Path, arguments: list[str]) -> None:
    links.write_ssh(tmp_path / "ssh", [Host("near", "127.0.0.1")])
    ended = subprocess.run([tmp_path / "ssh", *arguments], capture_output=True, text=True, check=True)
    assert ended.stdout == "a b\n"


def test_stand_in_for_ssh_knows_only_its_hosts(tmp_path: Path) -> None:
    links.write_ssh(tmp_path / "ssh", [Host("near", "127.0.0.1")])
    ended = subprocess.run([tmp_path / "ssh", "far", "true"], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (255, "ssh: no host of this bench: far\n")


def test_ranks_fill_the_hosts_and_a_server_is_on_the_first() -> None:
    assert [LIMITED.host(rank, 4).name[-1] for rank in range(5)] == ["0", "0", "1", "1", "0"]


def test_processes_learn_who_they_are() -> None:
    started = list(launching.commands(Job(("x",), "processes", 2, 1, servers=1), LIMITED))
    environments = [environment for _, environment in started]
    assert [e["RANK"] for e in environments] == ["0", "1", "2"]
    assert {e["WORLD_SIZE"] for e in environments} == {"3"}
    cluster = json.loads(environments[1]["TF_CONFIG"])
    assert len(cluster["cluster"]["worker"]) == 2
    assert cluster["task"] == {"type": "worker", "index": 1}
    assert started[1][0][:4] == ["ip", "netns", "exec", "prefixhost1"]


def test_horovodrun_gets_hosts_on_a_limited_link_only() -> None:
    assert launching.horovodrun("gloo", 2, LOCAL) == ["horovodrun", "-np", "2", "--gloo"]
    assert launching.horovodrun("mpi", 4, LIMITED)[4:8] == ["-H", "prefixhost0:2,prefixhost1:2", "--network-interfaces", "eth0"]


def test_copies_know_nothing_of_each_other() -> None:
    started = list(launching.commands(Job(("x", "{rank}"), "copies", 2, 1), LOCAL))
    assert started == [(["x", "0"], {}), (["x", "1"], {})]


def test_a_failed_job_tells_its_last_lines_and_ends_the_others(tmp_path: Path) -> None:
    job = Job(("sh", "-c", "test {rank} = 0 && exec sleep 60; echo broken; exit 3"), "copies", 2, 1)
    with pytest.raises(launching.RunError, match=r"ended with \[None, 3\](.|\n)*broken"):
        launching.run(job, LOCAL, tmp_path / "log.txt", timeout=30)


# --- peers and reports -----------------------------------------------------------------------------------


def test_peers_have_names_of_their_own_and_patterns_choose() -> None:
    assert len({peer.name for peer in PEERS}) == len(PEERS)
    assert choose(["*"]) == list(PEERS)
    assert [peer.name for peer in choose(["tutorial", "plain_*"])] == ["tutorial", "plain_torch", "plain_tensorflow"]
    with pytest.raises(ValueError, match="no peer is named nobody"):
        choose(["nobody"])


def test_ours_is_the_entry_that_users_have() -> None:
    ours = next(peer for peer in PEERS if peer.name == "ours-torch-gloo-fp16")
    command = ours.command(Path("work"), Path("results"), SMALL)
    assert command[:2] == ("hvd-lm", "train")
    assert command[command.index("--compression") + 1] == "fp16"
    ours = next(peer for peer in PEERS if peer.name == "ours-tensorflow-gloo-powersgd-2")
    words = ours.command(Path("work"), Path("results"), SMALL)
    given = dict(zip(words[2::2], words[3::2], strict=True))
    assert given["--compression"] == "powersgd"
    assert given["--powersgd-rank"] == "2"
    assert given["--powersgd-start-steps"] == str(SMALL.warmup)
    ours = next(peer for peer in PEERS if peer.name == "ours-torch-gloo-topk-0.001")
    words = ours.command(Path("work"), Path("results"), SMALL)
    given = dict(zip(words[2::2], words[3::2], strict=True))
    assert (given["--compression"], given["--topk-share"], given["--topk-start-steps"]) == ("topk", "0.001", "0")
    assert ours.maths == "topk"


def test_results_of_scripts_and_of_ours(tmp_path: Path) -> None:
    (tmp_path / "rank-0.json").write_text('{"seconds": [2, 1], "losses": [5, 4]}')
    (tmp_path / "rank-1.json").write_text('{"seconds": [2, 1.5], "losses": [6, 5]}')
    assert read_script(tmp_path) == ([[2, 1], [2, 1.5]], [[5, 4], [6, 5]])
    (tmp_path / "run-0").mkdir()
    (tmp_path / "run-0" / "metrics.jsonl").write_text('{"seconds": 2.0, "loss": 5.5}\n{"seconds": 3.5, "loss": 4.5}\n')
    assert read_ours(tmp_path) == ([[2.0, 1.5]], [[5.5, 4.5]])


def test_report(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    runs = [outcome("ours-torch-gloo", rate=200), outcome("tutorial", losses=(6.0, 4.0)), outcome("ours-torch-copies", size=1)]
    record = {
        "command": "python -m benchmarks compare",
        "date": "2026-01-01",
        "commit": "abc",
        "cpu": "a processor",
        "cores": 2,
        "versions": {"torch": "2"},
        "link": {"rate": "1gbit", "hosts": 2, "bytes_per_second": 1.2e8},
        "workload": asdict(SMALL) | {"parameters": SMALL.parameters, "small": True},
        "program_bytes": {"ours-torch-gloo": 4 * 10**8},
        "outcomes": [asdict(run) for run in runs],
        "failures": [{"peer": "zero1", "round": 1, "error": "ended with [1]"}],
    }
    report.write(record, tmp_path)
    text = (tmp_path / "table.md").read_text()
    assert "960 Mbit/s measured" in text
    assert "| tutorial | 2.00 [2.00, 2.00] |" in text
    assert "2e-01 DISAGREES" in text
    assert f"| 1,000 | 400 | {6e8 / SMALL.needed_bytes:.2f} |" in text
    assert "FAILED: zero1, round 1: ended with [1]" in text
    assert json.loads((tmp_path / "record.json").read_text()) == record
    assert np.frombuffer((tmp_path / "plot.png").read_bytes()[:8], np.uint8)[1:4].tobytes() == b"PNG"


# --- predicted -------------------------------------------------------------------------------------------


def test_a_pick_is_judged_by_the_fastest_way_that_was_measured() -> None:
    row = {"link": "1gbit", "ranks": 2, "framework": "torch", "controller": "gloo"}
    rows = [
        {**row, "accumulation": count, "compression": way, "pick": pick, "seconds": [seconds]}
        for count, pick, of_ways in ((1, "fp16", {"none": 2.0, "fp16": 1.0}), (4, "none", {"none": 2.1, "fp16": 2.0}))
        for way, seconds in of_ways.items()
    ]
    assert [round(longer, 9) for _, longer in predicted.picks(rows)] == [0, 0.05]
    said = predicted.summary_of_picks(rows)
    assert said == "The plan picked the fastest way in 1 of 2 cases, one within 5% of it in 1; at worst its step took 5.0% longer."
    assert predicted.summary_of_picks([]) == "Nothing was picked."


def test_predictions_are_judged_by_the_median_step_after_the_warm_up() -> None:
    metrics = "\n".join(json.dumps({"seconds": end}) for end in (5.0, 6.0, 7.0, 9.0, 10.0))
    assert predicted.step_seconds(metrics, 2) == [1.0, 1.0, 2.0]
    assert predicted.step_seconds(metrics, 1, together=2) == [1.0, 1.5]
    row = {"link": "1gbit", "ranks": 2, "framework": "torch", "controller": "gloo", "accumulation": 4, "compression": "none"}
    row |= {"pick": "none", "exposed": 0.1}
    rows = [{**row, "seconds": [1.0, 1.0, 2.0], "predicted": said} for said in (1.1, 0.7, 1.0)]
    assert [round(predicted.error(row), 9) for row in rows] == [0.1, -0.3, 0.0]
    assert predicted.summary(rows) == "Off by 10.0% in the median of 3 settings, by 30.0% at worst."
    assert predicted.summary([]) == "Nothing was measured."
    assert "+10.0%" in predicted.one_line(rows[0])
    record = {
        "date": "today",
        "cpu": "one",
        "cores": 1,
        "versions": {},
        "commit": "c",
        "command": "m",
        "rows": rows,
        "failures": ["f"],
    }
    assert "| -30.0%" in predicted.table(record)
    assert "FAILED: f" in predicted.table(record)
