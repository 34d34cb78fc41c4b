"""``python -m benchmarks busy``: whether the default threads are a good choice, on an idle machine and beside other processes."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks import machine
from benchmarks.figures import markdown_table
from benchmarks.launching import RunError
from hvd_lm.job.threads import cores

Task = Literal["train", "evaluate", "generate"]


@dataclass(frozen=True)
class Busy:
    """Each task with 1 thread, with all, and with what hvd_lm chooses, beside so many processes that never rest."""

    out: Path
    """Folder for busy.json and busy.md."""
    beside: tuple[int, ...] = (0, 2, 3)
    """Busy processes."""
    frameworks: tuple[Literal["torch", "tensorflow"], ...] = ("torch", "tensorflow")
    """Which frameworks."""
    tasks: tuple[Task, ...] = ("train", "evaluate", "generate")
    """What is timed."""
    sizes: tuple[Literal["tiny", "small", "reference"], ...] = ("small", "reference")
    """Units of a layer: 64, 200, 1024."""
    rounds: int = 3
    """How often each is run, in turn."""
    timeout: float = 600.0
    """Seconds for one run."""

    def run(self) -> int:
        self.out.mkdir(parents=True, exist_ok=True)
        threads = ("1", str(cores()), "default")
        rows: list[dict[str, Any]] = []
        with tempfile.TemporaryDirectory(dir=self.out) as folder:
            for size in self.sizes:
                _rate(("torch", "make", size, "default", folder), self.timeout)
            for beside in self.beside:
                for framework in self.frameworks:
                    for task in self.tasks:
                        for size in self.sizes:
                            row = {"beside": beside, "framework": framework, "task": task, "size": size}
                            with busy_processes(beside):
                                row |= self._compare(framework, task, size, threads, folder)
                            rows.append(row)
                            print(json.dumps(row), flush=True)
        table = as_table(rows, threads)
        (self.out / "busy.json").write_text(json.dumps({**machine.describe(), "rows": rows}, indent=1) + "\n", encoding="utf-8")
        (self.out / "busy.md").write_text(table, encoding="utf-8")
        print(table)
        return 0

    def _compare(self, framework: str, task: str, size: str, threads: tuple[str, ...], folder: str) -> dict[str, float]:
        rates: dict[str, list[float]] = {choice: [] for choice in threads}
        for _ in range(self.rounds):
            for choice in threads:
                rates[choice].append(_rate((framework, task, size, choice, folder), self.timeout))
        medians = {choice: statistics.median(values) for choice, values in rates.items()}
        best = max(rate for choice, rate in medians.items() if choice != "default")
        return {**medians, "times_slower": best / medians["default"]}


@contextlib.contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """`count` processes that compute without a rest."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def as_table(rows: list[dict[str, Any]], threads: tuple[str, ...]) -> str:
    """Tokens a second, and how many times slower the default is than the better of one thread and all."""
    head = ["busy beside", "framework", "task", "model", *(f"{choice} thread(s)" for choice in threads), "best / default"]
    cells = [
        [str(row["beside"]), row["framework"], row["task"], row["size"], *(f"{row[choice]:,.0f}" for choice in threads),
         f"{row['times_slower']:.2f}"]
        for row in rows
    ]  # fmt: skip
    return markdown_table(head, cells)


def _rate(arguments: tuple[str, ...], timeout: float) -> float:
    command = (sys.executable, "-m", "benchmarks.busy_work", *arguments)
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout, check=False)
    if ended.returncode:
        raise RunError(f"{' '.join(command)} ended with {ended.returncode}:\n{ended.stderr}")
    return float(json.loads(ended.stdout.splitlines()[-1])["tokens_per_second"])
