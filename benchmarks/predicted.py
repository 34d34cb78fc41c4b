"""``python -m benchmarks predicted``: whole steps as hvd-lm predict says them, beside those that hvd-lm train takes.

No measured step has a part in a prediction: it comes from collectives, and from the compute of one rank's micro-batches.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise, product
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from benchmarks import launching, links, machine
from benchmarks import workload as workloads
from benchmarks.figures import Spread, markdown_table
from benchmarks.launching import Job
from benchmarks.links import LOOPBACK, Network
from benchmarks.workload import Workload
from hvd_lm.communication.link import Link, read_link
from hvd_lm.communication.measure import Work
from hvd_lm.communication.plan import plan
from hvd_lm.communication.planned import COMPRESSIONS
from hvd_lm.communication.predict import predict
from hvd_lm.config import FRAMEWORKS, CommunicationConfig, DataConfig, Framework, OptimizerConfig, TopologyConfig
from hvd_lm.config.topology import Split

Way = Literal["none", "fp16", "powersgd", "topk", "late", "every-2", "every-8", "every-32", "optimizer", "layers", "vocabulary"]
_SETTINGS: Mapping[Way, Mapping[str, Any]] = {
    "none": {},
    "fp16": {"compression": "fp16"},
    "powersgd": {"compression": "powersgd", "powersgd_start_steps": 1},
    "topk": {"compression": "topk", "topk_start_steps": 0},
    "late": {"late_gradients": True},
    "every-2": {"reduce_every": 2},
    "every-8": {"reduce_every": 8},
    "every-32": {"reduce_every": 32},
    "optimizer": {},
    "layers": {},
    "vocabulary": {},
}
_CLOSE = 0.05
"""Picks whose step takes no more longer than the shortest are as good."""


@dataclass(frozen=True)
class Predicted:
    """One rank a host: measure each link, predict a grid of settings, then run them."""

    out: Path
    """Folder for predicted.json, predicted.md and logs/."""
    links: tuple[str, ...] = (LOOPBACK, "1gbit", "200mbit", "100mbit+5ms")
    """loopback and rates."""
    hosts: tuple[int, ...] = (2, 4, 8)
    """How many hosts, each with a rank; so many ranks on loopback."""
    slow_hosts: int = 0
    """So many of them have cables of half the rate."""
    accumulations: tuple[int, ...] = (1, 4, 10)
    """Micro-batches of a window."""
    compressions: tuple[Way, ...] = ("none", "fp16")
    """What travels, and when; powersgd at rank 4, exact in the first step of the warm-up alone. optimizer, layers and vocabulary:
    that is divided over all ranks."""
    frameworks: tuple[Framework, ...] = FRAMEWORKS
    """Which."""
    controllers: tuple[Literal["gloo", "mpi"], ...] = ("gloo",)
    """Which."""
    seconds: float = 60.0
    """For measuring a link."""
    small: bool = False
    """A small model, for trials of the bench."""
    timeout: float = 1800.0
    """Seconds for one run."""
    workload: Workload = field(default_factory=lambda: Workload(warmup=2, windows=10))

    def run(self) -> int:
        for rate in self.links:
            links.check_rate(rate)
        work = workloads.small(self.workload) if self.small else self.workload
        self.out.mkdir(parents=True, exist_ok=True)
        record: dict[str, Any] = {**machine.describe(), "workload": asdict(work), "rows": [], "failures": []}
        for rate in self.links:
            for hosts in self.hosts:
                with (
                    links.connect(rate, hosts, self.slow_hosts) as network,
                    tempfile.TemporaryDirectory(prefix="hvd_lm_bench_") as folder,
                ):
                    workloads.prepare(work, Path(folder) / "work")
                    for framework, controller in product(self.frameworks, self.controllers):
                        bench = _Bench(self, work, network, hosts, framework, controller, Path(folder))
                        try:
                            for row in bench.rows():
                                record["rows"].append(row)
                                print(one_line(row), file=sys.stderr, flush=True)
                        except launching.RunError as error:
                            record["failures"].append(f"{rate}, {hosts} ranks, {framework} over {controller}: {error}")
                            print(record["failures"][-1], file=sys.stderr, flush=True)
                        (self.out / "predicted.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
                        (self.out / "predicted.md").write_text(table(record), encoding="utf-8")
        print(table(record))
        return 1 if record["failures"] else 0


@dataclass(frozen=True)
class _Bench:
    """One framework over one controller on one network."""

    settings: Predicted
    workload: Workload
    network: Network
    ranks: int
    framework: Framework
    controller: Literal["gloo", "mpi"]
    folder: Path

    def rows(self) -> Iterator[dict[str, Any]]:
        """Of each accumulation and compression. Raises launching.RunError."""
        name = f"{self.network.rate}-{self.ranks}-{self.framework}-{self.controller}"
        measured = self.folder / f"{name}.json"
        config = self._config(max(self.settings.accumulations), "none", measured.with_suffix(".yaml"))
        flags = ("--config", config, "--out", measured, "--seconds", self.settings.seconds)
        self._launch(name, "measure", *flags)
        link = read_link(measured)
        (self.settings.out / measured.name).write_text(measured.read_text(encoding="utf-8"), encoding="utf-8")
        for count, compression in product(self.settings.accumulations, self.settings.compressions):
            run = f"{name}-{count}-{compression}"
            out = self.folder / run
            self._launch(run, "train", "--config", self._config(count, compression, out.with_suffix(".yaml")), "--out", out)
            together = int(_SETTINGS[compression].get("reduce_every", 1))
            seconds = step_seconds((out / "metrics.jsonl").read_text(encoding="utf-8"), self.workload.warmup, together)
            yield {
                "link": self.network.rate,
                "ranks": self.ranks,
                "framework": self.framework,
                "controller": self.controller,
                "accumulation": count,
                "compression": compression,
                "seconds": seconds,
                **self._predicted(link, count, compression),
                "pick": self._pick(link, count),
            }

    def _predicted(self, link: Link, count: int, compression: Way) -> dict[str, float]:
        work, topology = self._work(count, compression), TopologyConfig(**self._divided(compression))
        found = predict(link, self.framework, work, topology, self.ranks)
        return {"predicted": found.step_seconds, "exposed": found.exposed_seconds, "bound": found.bandwidth_bound_seconds}

    def _pick(self, link: Link, count: int) -> str | None:
        """What hvd-lm plan takes of the ways that are run here and that it plans; None if they are none."""
        planned = tuple(its for its in COMPRESSIONS if its in self.settings.compressions)
        work, tokens = self._work(count, "none"), self.ranks * count * self.workload.batch_size * self.workload.sequence_length
        return plan(link, self.framework, work, TopologyConfig(), (self.ranks,), tokens, planned).pick.way if planned else None

    def _work(self, count: int, compression: Way) -> Work:
        return Work(
            self.workload.model,
            DataConfig(batch_size=self.workload.batch_size, sequence_length=self.workload.sequence_length),
            OptimizerConfig(),
            CommunicationConfig(backward_passes_per_step=count, **_SETTINGS[compression]),
        )

    def _divided(self, way: Way) -> dict[str, Any]:
        if way not in get_args(Split):
            return {}
        return {"split": way, "model_parallel": 1 if way == "optimizer" else self.ranks}

    def _config(self, count: int, compression: Way, path: Path) -> Path:
        work = self.workload
        values = {
            "framework": self.framework,
            "vocabulary_size": work.vocabulary_size,
            "embedding_size": work.embedding_size,
            "hidden_size": work.hidden_size,
            "layers": work.layers,
            "batch_size": work.batch_size,
            "sequence_length": work.sequence_length,
            "learning_rate": work.learning_rate,
            "backward_passes_per_step": count,
            **_SETTINGS[compression],
            **self._divided(compression),
            "threads": work.threads,
            "steps": work.warmup + work.windows,
            "epochs": 1000,
            "data": [str(self.folder / "work" / "text.txt")],
            "validation_share": 0.0,
        }
        path.write_text(yaml.safe_dump(values), encoding="utf-8")
        return path

    def _launch(self, name: str, *words: str | Path | float) -> None:
        job = Job(("hvd-lm", *map(str, words)), self.controller, self.ranks, self.workload.threads)
        launching.run(job, self.network, self.settings.out / "logs" / f"{name}.txt", timeout=self.settings.timeout)


def step_seconds(metrics: str, warmup: int, together: int = 1) -> list[float]:
    """Seconds of a step after the first `warmup`, by rank 0's clock, in the mean of so many `together`, ascending."""
    ends = [json.loads(line)["seconds"] for line in metrics.splitlines()][warmup - 1 :: together]
    return sorted((after - before) / together for before, after in pairwise(ends))


def error(row: dict[str, Any]) -> float:
    """Predicted over measured, less 1."""
    return float(row["predicted"] / statistics.median(row["seconds"]) - 1)


def one_line(row: dict[str, Any]) -> str:
    where = f"{row['link']}, {row['ranks']} ranks, {row['framework']} over {row['controller']}"
    what = f"N={row['accumulation']}, {row['compression']}"
    return f"{where}, {what}: {row['predicted']:.3f} s predicted, {Spread.of(row['seconds']):.3f} measured, {error(row):+.1%}"


def table(record: dict[str, Any]) -> str:
    """The record as Markdown."""
    names = ("link", "ranks", "framework", "controller", "accumulation", "compression")
    rows = [
        [
            *(str(row[name]) for name in names),
            f"{Spread.of(row['seconds']):.3f}",
            f"{row['predicted']:.3f}",
            f"{row['exposed']:.3f}",
            f"{error(row):+.1%}",
        ]
        for row in record["rows"]
    ]
    header = [*names, "measured s, median [quartiles]", "predicted s", "of it exposed", "predicted / measured - 1"]
    return "\n".join(
        [
            f"{machine.one_line(record)}; commit {record['commit']}\n",
            f"`{record['command']}`\n",
            markdown_table(header, rows),
            f"{summary(record['rows'])}\n",
            f"{summary_of_picks(record['rows'])}\n",
            *(f"FAILED: {failure}\n" for failure in record["failures"]),
        ]
    )


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """Median and worst of the errors, signs apart."""
    if not rows:
        return "Nothing was measured."
    errors = [abs(error(row)) for row in rows]
    return f"Off by {statistics.median(errors):.1%} in the median of {len(errors)} settings, by {max(errors):.1%} at worst."


def picks(rows: Sequence[dict[str, Any]]) -> list[tuple[dict[str, Any], float]]:
    """Of each link, ranks, framework, controller and accumulation the row of the plan's pick, and how much longer its step takes
    than the shortest that was measured."""
    names = ("link", "ranks", "framework", "controller", "accumulation")
    alike: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        alike.setdefault(tuple(row[name] for name in names), []).append(row)
    found = []
    for its in alike.values():
        best = min(statistics.median(row["seconds"]) for row in its)
        found += [(row, statistics.median(row["seconds"]) / best - 1) for row in its if row["compression"] == row["pick"]]
    return found


def summary_of_picks(rows: Sequence[dict[str, Any]]) -> str:
    """How good the picks are."""
    longer = sorted(its for _, its in picks(rows))
    if not longer:
        return "Nothing was picked."
    best, close = sum(its == 0 for its in longer), sum(its <= _CLOSE for its in longer)
    return (
        f"The plan picked the fastest way in {best} of {len(longer)} cases, one within {_CLOSE:.0%} of it in {close}; "
        f"at worst its step took {longer[-1]:.1%} longer."
    )
