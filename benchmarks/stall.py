"""``python -m benchmarks stall``: how long training waits for its data and for its checkpoints."""

from __future__ import annotations

import itertools
import json
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks import launching, links, machine
from benchmarks.launching import Job
from benchmarks.links import LOOPBACK
from hvd_lm.data.prepare import PrepareConfig, prepare

_WARMUP = 2


@dataclass(frozen=True)
class Stall:
    """Train the reference model on a prepared text with frequent checkpoints, and read its metrics.jsonl."""

    out: Path
    """Folder for stall.json."""
    data: tuple[Path, ...]
    """Texts; their vocabulary must reach 10000 words."""
    frameworks: tuple[Literal["torch", "tensorflow"], ...] = ("torch", "tensorflow")
    """Which frameworks."""
    ranks: int = 2
    """Ranks, of one thread each."""
    steps: int = 24
    """Optimizer steps of each run."""
    every: int = 4
    """Steps between checkpoints."""
    dropout: float = 0.2
    """Its masks are made with the data."""
    flags: tuple[str, ...] = ()
    """More flags of hvd-lm train, each as one word: --batch-size=4."""
    timeout: float = 3600.0
    """Seconds for one run."""

    def run(self) -> int:
        self.out.mkdir(parents=True, exist_ok=True)
        record: dict[str, Any] = {**machine.describe(), "rows": []}
        with links.connect(LOOPBACK, 2) as network, tempfile.TemporaryDirectory(dir=self.out) as folder:
            prepare(PrepareConfig(text=self.data, out=Path(folder, "data"), vocabulary_size=10_000))
            for framework in self.frameworks:
                run = Path(folder, framework)
                command = (
                    "hvd-lm", "train", "--data", f"{folder}/data", "--framework", framework, "--out", str(run), "--threads", "1",
                    "--steps", str(self.steps), "--checkpoint-every", str(self.every), "--validation-every", "1000000",
                    "--dropout", str(self.dropout), "--batch-size", "8", "--sequence-length", "32", *self.flags,
                )  # fmt: skip
                job = Job(command, "gloo" if self.ranks > 1 else "alone", self.ranks, 1)
                launching.run(job, network, self.out / f"stall-{framework}.log", timeout=self.timeout)
                row = {"framework": framework, "ranks": self.ranks, **figures(read(run / "metrics.jsonl"), self.every)}
                record["rows"].append(row)
                print(json.dumps(row), flush=True)
        (self.out / "stall.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        return 0


def read(metrics: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]


def figures(rows: list[dict[str, Any]], every: int) -> dict[str, float]:
    """Shares and seconds, the first steps left out."""
    steps = [{**row, "step_seconds": row["seconds"] - before["seconds"]} for before, row in itertools.pairwise(rows)][_WARMUP:]
    beside = [row["step_seconds"] for row in steps if (row["step"] - 1) % every == 0]
    others = [row["step_seconds"] for row in steps if (row["step"] - 1) % every != 0]
    blocked = [row["checkpoint_seconds"] for row in steps if row["checkpoint_seconds"] > 0]
    return {
        "median_step_seconds": statistics.median(others),
        "share_waiting_for_data": sum(row["data_seconds"] for row in steps) / sum(row["step_seconds"] for row in steps),
        "checkpoints": len(blocked),
        "median_seconds_blocked_by_a_checkpoint": statistics.median(blocked),
        "median_step_seconds_while_one_is_written": statistics.median(beside),
    }
