"""``python -m benchmarks exposed``: how much of the reduction training waits for, by the clock of each rank (PyTorch)."""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import figures, launching, links, machine, workload
from benchmarks.catalog import PEERS, Peer
from benchmarks.compare import read_ours
from benchmarks.figures import Spread, markdown_table
from benchmarks.launching import Job, Launcher, python
from benchmarks.links import Network
from benchmarks.workload import Workload

_OURS = ("ours-torch-gloo-fp16", "ours-torch-gloo", "ours-torch-mpi-fp16", "ours-torch-mpi")


@dataclass(frozen=True)
class Exposed:
    """Of every window, the wait of the slowest rank: who is faster waits for that one too, which is no communication.

    Beside it the reduction of all values alone, on the same link.
    """

    out: Path
    """Folder for exposed.json, exposed.md and logs/."""
    link: str = "1gbit"
    """The rate of the hosts' cables, or loopback; one host a rank."""
    rounds: int = 2
    """How often each runs."""
    timeout: float = 1800.0
    """Seconds for one run."""
    workload: Workload = field(default_factory=lambda: Workload(warmup=1, windows=6))

    def run(self) -> int:
        peers = {peer.name: peer for peer in PEERS if peer.name in _OURS}
        with (
            tempfile.TemporaryDirectory(prefix="hvd_lm_bench_") as temporary,
            links.connect(self.link, self.workload.ranks) as network,
        ):
            folder = Path(temporary)
            workload.prepare(self.workload, folder / "work")
            record: dict[str, Any] = {
                **machine.describe(),
                "link": {"rate": self.link, "bytes_per_second": links.measure_bandwidth(network)},
                "workload": asdict(self.workload) | {"parameters": self.workload.parameters},
                "runs": [],
                "alone": {launcher: self._alone(launcher, network, folder) for launcher in ("gloo", "mpi")},
            }
            for number in range(self.rounds):
                for name in figures.rotated(list(peers), number):
                    run = {"peer": name, **self._waits(peers[name], network, folder, f"{name}-{number + 1}")}
                    record["runs"].append(run)
                    print(f"{name}: {statistics.median(run['slowest']):.3f} s of a window", file=sys.stderr, flush=True)
        (self.out / "exposed.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
        (self.out / "exposed.md").write_text(table(record), encoding="utf-8")
        print(table(record))
        return 0

    def _alone(self, launcher: Launcher, network: Network, folder: Path) -> dict[str, float]:
        """Median seconds of the reduction of all values, by number format. Raises launching.RunError."""
        results = folder / f"alone-{launcher}"
        results.mkdir()
        job = Job(python("reduce_horovod", self.workload.parameters, 5), launcher, self.workload.ranks, self.workload.threads)
        self._launch(job, network, results)
        ranks = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("rank-*.json"))]
        return {
            number_format: statistics.median(map(max, zip(*(rank[number_format] for rank in ranks), strict=True)))
            for number_format in ("fp32", "fp16")
        }

    def _waits(self, peer: Peer, network: Network, folder: Path, name: str) -> dict[str, Any]:
        """One run. Raises launching.RunError."""
        results = folder / name
        results.mkdir()
        _, *arguments = peer.command(folder / "work", results, self.workload)
        job = Job((*python("waits", results), *arguments), peer.launcher, self.workload.ranks, self.workload.threads)
        self._launch(job, network, results)
        waits_RW = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("waits-*.json"))]
        seconds_RW, _ = read_ours(results)
        return summary(waits_RW, seconds_RW[0], self.workload.warmup)

    def _launch(self, job: Job, network: Network, results: Path) -> None:
        log = self.out / "logs" / f"{results.name}.txt"
        launching.run(job, network, log, timeout=self.timeout, environment={"BENCH_RESULTS": str(results)})


def summary(waits_RW: Sequence[Sequence[float]], seconds: Sequence[float], warmup: int) -> dict[str, Any]:
    """Of each window after the warm-up: its seconds, and the waits of the slowest and of the fastest rank."""
    windows = list(zip(*waits_RW, strict=True))[warmup:]
    return {"seconds": list(seconds[warmup:]), "slowest": list(map(min, windows)), "fastest": list(map(max, windows))}


def table(record: dict[str, Any]) -> str:
    """The record as Markdown."""
    rows = []
    for name in dict.fromkeys(run["peer"] for run in record["runs"]):
        of_peer = [run for run in record["runs"] if run["peer"] == name]
        seconds, slowest, fastest = (
            Spread.of([window for run in of_peer for window in run[what]]) for what in ("seconds", "slowest", "fastest")
        )
        alone = record["alone"]["mpi" if "-mpi" in name else "gloo"]["fp16" if name.endswith("fp16") else "fp32"]
        cells = [f"{seconds:.2f}", f"{slowest:.3f}", f"{fastest:.3f}", f"{alone:.3f}", f"{slowest.median / alone:.2f}"]
        rows.append([name, *cells])
    header = ["", "s/window, median [quartiles]", "slower rank waits", "faster rank waits", "reduction alone", "exposed / alone"]
    link, work = record["link"], record["workload"]
    where = f"{link['rate']} ({link['bytes_per_second'] * 8 / 1e6:,.0f} Mbit/s measured), {work['ranks']} ranks"
    return "\n".join(
        [
            f"Seconds of a window in which ranks wait for Horovod: {where}, N={work['accumulation']}\n",
            f"{machine.one_line(record)}; commit {record['commit']}\n",
            f"`{record['command']}`\n",
            markdown_table(header, rows),
        ]
    )
