"""``python -m benchmarks compare``: every peer once in each round, on the same work and link."""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatch
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks import figures, launching, links, machine, report, workload
from benchmarks.catalog import PEERS, Peer
from benchmarks.figures import Outcome
from benchmarks.links import LOOPBACK, Network
from benchmarks.workload import Workload


@dataclass(frozen=True)
class Compare:
    """Run peers side by side, interleaved and repeated; ends with 1 if one failed or losses disagree."""

    out: Path
    """Folder for record.json, table.md, plot.png, and the output of each run in logs/."""
    peers: tuple[str, ...] = ("*",)
    """Names or patterns of them (ours-*, *-fp16); see the command peers."""
    link: str = LOOPBACK
    """loopback, or the rate of the hosts' cables: 1gbit, 100mbit."""
    hosts: int | None = None
    """Hosts on a limited link. Unless given: one a rank."""
    rounds: int = 3
    """How often each peer runs."""
    small: bool = False
    """A small model, for trials of the bench; its figures mean nothing."""
    timeout: float = 1800.0
    """Seconds for one run of one peer."""
    workload: Workload = field(default_factory=Workload)

    def run(self) -> int:
        work = workload.small(self.workload) if self.small else self.workload
        peers = choose(self.peers)
        hosts = self.hosts or work.ranks
        self.out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="hvd_lm_bench_") as folder, links.connect(self.link, hosts) as network:
            workload.prepare(work, Path(folder) / "work")
            # The text may yield fewer words than asked for.
            work, _, _ = workload.read(Path(folder) / "work")
            record = {
                **machine.describe(),
                "link": {"rate": self.link, "hosts": len(network.hosts), "bytes_per_second": links.measure_bandwidth(network)},
                "workload": asdict(work) | {"parameters": work.parameters, "small": self.small},
                "peers": {peer.name: peer.summary for peer in peers},
                "program_bytes": {},
                "outcomes": [],
                "failures": [],
            }
            self._programs(peers, network, Path(folder), record)
            self._rounds(peers, work, network, Path(folder), record)
        outcomes = [Outcome(**outcome) for outcome in record["outcomes"]]
        disagreeing = [check for check in figures.check_losses(outcomes) if not check.agrees]
        print((self.out / "table.md").read_text(encoding="utf-8"))
        return 1 if record["failures"] or disagreeing else 0

    def _programs(self, peers: Sequence[Peer], network: Network, folder: Path, record: dict[str, Any]) -> None:
        """The peak memory of each peer with a small model: what its program takes without the model."""
        workload.prepare(replace(workload.small(self.workload), warmup=1, windows=2), folder / "small" / "work")
        work, _, _ = workload.read(folder / "small" / "work")
        for peer in peers:
            log = self.out / "logs" / f"{peer.name}-small.txt"
            try:
                outcome = run_peer(peer, 0, work, network, folder / "small", log, self.timeout)
            except launching.RunError as error:
                record["failures"].append({"peer": peer.name, "round": 0, "error": str(error)})
            else:
                record["program_bytes"][peer.name] = max(outcome.peak_bytes)

    def _rounds(self, peers: Sequence[Peer], work: Workload, network: Network, folder: Path, record: dict[str, Any]) -> None:
        by_name = {peer.name: peer for peer in peers}
        for number in range(1, self.rounds + 1):
            for position, name in enumerate(figures.rotated(list(by_name), number - 1), 1):
                say = f"round {number}/{self.rounds}, {position}/{len(peers)}: {name}"
                log = self.out / "logs" / f"{name}-{number}.txt"
                try:
                    outcome = run_peer(by_name[name], number, work, network, folder, log, self.timeout)
                except launching.RunError as error:
                    record["failures"].append({"peer": name, "round": number, "error": str(error)})
                    say += f" FAILED: {error}"
                else:
                    record["outcomes"].append(asdict(outcome))
                    say += f"  {outcome.tokens_per_second:,.0f} tokens/s"
                print(say, file=sys.stderr, flush=True)
                # After each run, so that an interrupted bench keeps what it has.
                report.write(record, self.out)


def choose(patterns: Sequence[str]) -> list[Peer]:
    """The peers that any of `patterns` fits. Raises ValueError for a pattern that fits none."""
    for pattern in patterns:
        if not any(fnmatch(peer.name, pattern) for peer in PEERS):
            raise ValueError(f"no peer is named {pattern}: choose from {', '.join(peer.name for peer in PEERS)}")
    return [peer for peer in PEERS if any(fnmatch(peer.name, pattern) for pattern in patterns)]


def run_peer(peer: Peer, number: int, work: Workload, network: Network, folder: Path, log: Path, timeout: float) -> Outcome:
    """One run of one peer. Raises launching.RunError if it fails."""
    results = folder / f"{peer.name}-{number}"
    results.mkdir()
    load, sent = os.getloadavg()[0], network.sent_bytes()
    job = peer.job(folder / "work", results, work)
    launching.run(job, network, log, timeout=timeout, environment={"BENCH_RESULTS": str(results)})
    sent = network.sent_bytes() - sent
    seconds_RW, losses_RW = read_ours(results) if peer.is_ours else read_script(results)
    timed_RW = [seconds[work.warmup :] for seconds in seconds_RW]
    copies = len(seconds_RW) if peer.launcher == "copies" else 1
    # Of ranks that share a model rank 0 speaks; copies are their sum, and their first one is compared.
    rates = [work.tokens_per_window(peer.size(work)) * work.windows / sum(timed) for timed in timed_RW[:copies]]
    shared = losses_RW[:1] if peer.launcher == "copies" else losses_RW
    peaks = [json.loads(path.read_text())["peak_bytes"] for path in sorted(results.glob("memory-*.json"))]
    return Outcome(
        peer=peer.name,
        round=number,
        size=peer.size(work),
        maths=peer.maths,
        is_ours=peer.is_ours,
        tokens_per_second=sum(rates),
        seconds=[max(column) for column in zip(*timed_RW[:copies], strict=True)],
        mean_seconds=[statistics.mean(column) for column in zip(*timed_RW[:copies], strict=True)],
        losses=[statistics.mean(column) for column in zip(*shared, strict=True)],
        peak_bytes=peaks,
        sent_bytes=sent,
        load=load,
    )


def read_script(results: Path) -> tuple[list[list[float]], list[list[float]]]:
    """Seconds and losses [R, W] that the scripts of the peers have written."""
    rows = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("rank-*.json"))]
    return [row["seconds"] for row in rows], [row["losses"] for row in rows]


def read_ours(results: Path) -> tuple[list[list[float]], list[list[float]]]:
    """The same from metrics.jsonl of each run; its losses are means over the ranks already."""
    runs = [
        [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for path in sorted(results.glob("run-*/metrics.jsonl"))
    ]
    totals = [[0.0, *(row["seconds"] for row in rows)] for rows in runs]
    seconds = [[after - before for before, after in pairwise(total)] for total in totals]
    return seconds, [[row["loss"] for row in rows] for rows in runs]


def list_peers() -> None:
    with suppress(BrokenPipeError):
        width = max(len(peer.name) for peer in PEERS)
        print("\n".join(f"{peer.name:<{width}}  {peer.summary}" for peer in PEERS))
