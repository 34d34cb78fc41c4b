"""``python -m benchmarks writing``: tokens a second that a model of the reference size writes."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks import machine
from benchmarks.figures import Spread
from hvd_lm import checkpoint as checkpoints
from hvd_lm.adapters.base import OptimizerState
from hvd_lm.checkpoint import Checkpoint, Progress
from hvd_lm.config import ModelConfig, OptimizerConfig
from hvd_lm.data.sources import Position
from hvd_lm.data.tokenizer import train_word_level
from hvd_lm.generation.text import TextGenerator
from hvd_lm.model.stages import state_size
from hvd_lm.model.weights import initial_weights

_WORDS = 10_000


@dataclass(frozen=True)
class Writing:
    """Write with random weights, one text and several at once, in both frameworks, in turn."""

    out: Path
    """Folder for writing.json."""
    frameworks: tuple[Literal["torch", "tensorflow"], ...] = ("torch", "tensorflow")
    """Which frameworks."""
    samples: tuple[int, ...] = (1, 8)
    """Texts written at once."""
    prompts: tuple[int, ...] = (1, 500)
    """Words before the text: a token must cost the same after any number of them."""
    length: int = 100
    """Tokens of a text."""
    threads: int = 1
    """Compute threads."""
    rounds: int = 3
    """Measured rounds; each is a new process."""

    def run(self) -> int:
        self.out.mkdir(parents=True, exist_ok=True)
        run = self.out / "random-model"
        save_random_model(run)
        rates: dict[str, list[float]] = {}
        for _ in range(self.rounds):
            for framework in self.frameworks:
                code = f"from benchmarks.writing import measure; measure({str(run)!r}, {framework!r}, {self.settings()!r})"
                root = Path(__file__).parent.parent
                done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
                for name, rate in json.loads(done.stdout.splitlines()[-1]).items():
                    rates.setdefault(name, []).append(rate)
        rows = [{"what": name, "tokens_per_second": Spread.of(values).__dict__} for name, values in rates.items()]
        record: dict[str, Any] = {**machine.describe(), "rows": rows}
        (self.out / "writing.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        for row in rows:
            print(json.dumps(row), flush=True)
        return 0

    def settings(self) -> tuple[tuple[int, ...], tuple[int, ...], int, int]:
        return self.samples, self.prompts, self.length, self.threads


def save_random_model(run: Path) -> None:
    """A checkpoint of the reference model, as if nothing had been trained."""
    tokenizer = train_word_level(" ".join(f"w{index}" for index in range(_WORDS - 2)), None)
    model = ModelConfig(tokenizer.vocabulary_size)
    state = np.zeros((2, 1, state_size(model)), np.float32)
    progress = Progress(0, Position((), 1, 1, 0), 0, 0, 0.0, "", state)
    weights = initial_weights(model, seed=1)
    checkpoints.save(Checkpoint(1, model, OptimizerConfig("sgd"), weights, OptimizerState(0, {}), tokenizer, progress), run, keep=1)


def measure(run: str, framework: Any, settings: tuple[tuple[int, ...], tuple[int, ...], int, int]) -> None:
    """Print tokens a second for each number of samples and length of prompt, as JSON."""
    samples, prompts, length, threads = settings
    writer = TextGenerator(run, framework=framework, threads=threads)
    print(json.dumps(dict(_rates(writer, framework, samples, prompts, length))))


def _rates(
    writer: TextGenerator, framework: str, samples: tuple[int, ...], prompts: tuple[int, ...], length: int
) -> Iterator[tuple[str, float]]:
    for count, words in itertools.product(samples, prompts):
        prompt = " ".join(f"w{index}" for index in range(words))
        writer.samples(prompt, count, length=5)
        # The prompt itself is not counted: what is measured is a token after it.
        began = time.perf_counter()
        writer.samples(prompt, count, length=1)
        for_prompt = time.perf_counter() - began
        began = time.perf_counter()
        writer.samples(prompt, count, length=1 + length)
        seconds = time.perf_counter() - began - for_prompt
        yield f"{framework}, {count} at once, after {words} words", count * length / seconds
