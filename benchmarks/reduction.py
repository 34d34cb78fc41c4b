"""``python -m benchmarks reduction``: one all-reduce alone, on each link, beside the bound that the link sets."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import launching, links, machine
from benchmarks.figures import Spread, markdown_table, ring_bound
from benchmarks.launching import Job, Launcher, python
from benchmarks.links import LOOPBACK, Network

_BYTES = {"fp32": 4, "fp16": 2, "fp16 and casts": 2}
_ENGINES: dict[str, tuple[str, Launcher]] = {
    "Horovod gloo": ("reduce_horovod", "gloo"),
    "Horovod mpi": ("reduce_horovod", "mpi"),
    "torch gloo": ("reduce_torch", "processes"),
}


@dataclass(frozen=True)
class Reduction:
    """All-reduce of one tensor over Gloo and MPI, by Horovod and by torch.distributed; one rank a host (2 ranks on loopback)."""

    out: Path
    """Folder for reduction.json and reduction.md."""
    links: tuple[str, ...] = (LOOPBACK, "1gbit", "100mbit")
    """loopback and rates."""
    hosts: tuple[int, ...] = (2, 4, 8)
    """How many hosts, on the limited links."""
    values: int = 27_000_000
    """Length of the tensor."""
    repeats: int = 5
    """Timed all-reduces of each process, after one that is not timed."""
    timeout: float = 1800.0
    """Seconds for one job."""

    def run(self) -> int:
        for link in self.links:
            links.check_rate(link)
        self.out.mkdir(parents=True, exist_ok=True)
        record: dict[str, Any] = {**machine.describe(), "values": self.values, "rows": [], "failures": []}
        for rate in self.links:
            for hosts in self.hosts if rate != LOOPBACK else (2,):
                with links.connect(rate, hosts) as network:
                    self._measure_network(network, hosts, record)
        print(table(record))
        return 1 if record["failures"] else 0

    def _measure_network(self, network: Network, ranks: int, record: dict[str, Any]) -> None:
        bandwidth = links.measure_bandwidth(network)
        for engine in _ENGINES:
            say = f"{network.rate}, {ranks} ranks, {engine}"
            try:
                rows = list(self._measure(engine, ranks, network, bandwidth))
            except launching.RunError as error:
                record["failures"].append(f"{say}: {error}")
                say += f" FAILED: {error}"
            else:
                record["rows"] += rows
                say = "  ".join([say, *(f"{row['format']} {Spread.of(row['seconds']).median:.3f} s" for row in rows)])
            print(say, file=sys.stderr, flush=True)
            self._write(record)

    def _measure(self, engine: str, ranks: int, network: Network, bandwidth: float) -> Iterator[dict[str, Any]]:
        """A row for each number format. Raises launching.RunError."""
        script, launcher = _ENGINES[engine]
        with tempfile.TemporaryDirectory(prefix="hvd_lm_bench_") as folder:
            job = Job(python(script, self.values, self.repeats), launcher, ranks, threads=1)
            log = self.out / "logs" / f"{network.rate}-{ranks}-{engine.replace(' ', '-')}.txt"
            launching.run(job, network, log, timeout=self.timeout, environment={"BENCH_RESULTS": folder})
            results = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(Path(folder).glob("rank-*.json"))]
        for name, size in _BYTES.items():
            # The slowest rank counts.
            seconds = [max(repetition) for repetition in zip(*(result[name] for result in results), strict=True)]
            yield {
                "link": network.rate,
                "ranks": ranks,
                "engine": engine,
                "format": name,
                "seconds": sorted(seconds),
                "bytes_per_second": bandwidth,
                "bound": ring_bound(size * self.values, ranks, bandwidth),
            }

    def _write(self, record: dict[str, Any]) -> None:
        (self.out / "reduction.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
        (self.out / "reduction.md").write_text(table(record), encoding="utf-8")


def table(record: dict[str, Any]) -> str:
    """The record as Markdown."""
    rows = []
    full: dict[tuple[Any, ...], float] = {}
    for row in record["rows"]:
        spread = Spread.of(row["seconds"])
        where = (row["link"], row["ranks"], row["engine"])
        if row["format"] == "fp32":
            full[where] = spread.median
        rows.append(
            [
                f"{row['link']} ({row['bytes_per_second'] * 8 / 1e6:,.0f} Mbit/s)",
                str(row["ranks"]),
                row["engine"],
                row["format"],
                f"{spread:.3f}",
                f"{spread.median / full[where]:.2f}",
                f"{row['bound']:.3f}" if row["link"] != LOOPBACK else "",
                f"{spread.median / row['bound']:.2f}" if row["link"] != LOOPBACK else "",
            ]
        )
    header = ["link (measured)", "ranks", "engine", "format", "seconds, median [quartiles]", "/ fp32", "bound", "/ bound"]
    parts = [
        f"All-reduce of {record['values']:,} values; bound: 2(n-1)/n x bytes / measured bandwidth\n",
        f"{machine.one_line(record)}; commit {record['commit']}\n",
        f"`{record['command']}`\n",
        markdown_table(header, rows),
        *(f"FAILED: {failure}\n" for failure in record["failures"]),
    ]
    return "\n".join(parts)
