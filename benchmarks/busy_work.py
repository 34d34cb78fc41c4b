"""``python -m benchmarks.busy_work FRAMEWORK TASK SIZE THREADS FOLDER``: how fast one process does one task; prints one JSON line.

TASK: train, evaluate, generate, or make: a checkpoint and a text for the last two. SIZE: tiny, small, reference. THREADS: a number,
or default for what hvd_lm chooses.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import hvd_lm
from hvd_lm.config import Framework
from hvd_lm.data.corpus import embedded_corpus

SIZES = {"tiny": (64, 32), "small": (200, 200), "reference": (1024, 300)}
"""Units of a layer, width of an embedding."""
STEPS = {"tiny": 60, "small": 12, "reference": 3}
TOKENS_READ = {"tiny": 20_000, "small": 8_000, "reference": 1_500}
TOKENS_WRITTEN = {"tiny": 300, "small": 200, "reference": 60}


def run_config(framework: Framework, size: str, threads: int | None, out: Path, steps: int) -> hvd_lm.RunConfig:
    """Training on the embedded text."""
    units, width = SIZES[size]
    return hvd_lm.RunConfig(
        framework=framework,
        out=out,
        steps=steps,
        threads=threads,
        model=hvd_lm.ModelConfig(hidden_size=units, embedding_size=width),
        data=hvd_lm.DataConfig(validation_share=0.0, batch_size=20 if size == "small" else 8, sequence_length=35),
        communication=hvd_lm.CommunicationConfig(backward_passes_per_step=2),
    )


def make(framework: Framework, size: str, threads: int | None, folder: Path) -> float:
    """What `evaluate` and `generate` read."""
    hvd_lm.train(run_config(framework, size, threads, folder / size, steps=1))
    words = embedded_corpus().split(" ")
    (folder / f"{size}.txt").write_text(" ".join(words[: TOKENS_READ[size]]), encoding="utf-8")
    return 0.0


def train(framework: Framework, size: str, threads: int | None, folder: Path) -> float:
    """Tokens a second, median of the steps but the first."""
    out = folder / f"train-{time.time_ns()}"
    hvd_lm.train(run_config(framework, size, threads, out, STEPS[size]))
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return statistics.median(row["tokens_per_second"] for row in rows[1:])


def evaluate(framework: Framework, size: str, threads: int | None, folder: Path) -> float:
    """Tokens a second of the second reading of a text."""
    text = folder / f"{size}.txt"
    tokens, seconds = 0, 0.0
    for _ in range(2):
        began = time.perf_counter()
        tokens = hvd_lm.evaluate(folder / size, [text], framework=framework, threads=threads).tokens
        seconds = time.perf_counter() - began
    return tokens / seconds


def generate(framework: Framework, size: str, threads: int | None, folder: Path) -> float:
    """Tokens a second of the second text."""
    writer = hvd_lm.TextGenerator(folder / size, framework=framework, threads=threads)
    seconds = 0.0
    for _ in range(2):
        began = time.perf_counter()
        for _ in writer.stream("The", length=TOKENS_WRITTEN[size]):
            pass
        seconds = time.perf_counter() - began
    return TOKENS_WRITTEN[size] / seconds


TASKS: dict[str, Callable[[Framework, str, int | None, Path], float]] = {
    "make": make,
    "train": train,
    "evaluate": evaluate,
    "generate": generate,
}


def main(framework: Framework, task: str, size: str, threads: str, folder: str) -> None:
    rate = TASKS[task](framework, size, None if threads == "default" else int(threads), Path(folder))
    print(json.dumps({"tokens_per_second": rate}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])  # type: ignore[arg-type]
