"""Text from a model: one token at a time, the state carried, sampling in NumPy so that both frameworks agree."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hvd_lm import checkpoint as checkpoints
from hvd_lm.adapters import adapter_class
from hvd_lm.adapters.base import Adapter
from hvd_lm.config import Framework
from hvd_lm.errors import ConfigError


@dataclass(frozen=True)
class SamplingConfig:
    """How the next token is drawn."""

    temperature: float = 1.0
    """Divides the logits: below 1 likelier tokens, 0 always the likeliest."""
    top_k: int | None = None
    """Draw from the k likeliest tokens only."""
    seed: int = 1
    """Seed of the draws."""

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ConfigError(f"--temperature must not be negative, not {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(f"--top-k must be at least 1, not {self.top_k}")


@dataclass(frozen=True)
class GenerateConfig:
    """Write text with a checkpoint."""

    checkpoint: Path
    """Folder of a training run (its newest checkpoint), or of one checkpoint."""
    prompt: str = ""
    """Text to go on from. Words that the vocabulary lacks count as <unk>, which is never written."""
    length: int = 100
    """Tokens to write."""
    framework: Framework = "torch"
    """Which framework computes; any can read any checkpoint."""
    threads: int | None = None
    """Compute threads. Unless given: the cores of the machine."""
    sampling: SamplingConfig = SamplingConfig()

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ConfigError(f"--length must be at least 1, not {self.length}")


def draw(logits: NDArray[np.float32], config: SamplingConfig, generator: np.random.Generator) -> int:
    """A token id from the logits ``[V]``."""
    if config.temperature == 0:
        return int(logits.argmax())
    scaled = logits.astype(np.float64) / config.temperature
    if config.top_k is not None and config.top_k < len(scaled):
        scaled[scaled < np.partition(scaled, -config.top_k)[-config.top_k]] = -np.inf
    probabilities = np.exp(scaled - scaled.max())
    # One uniform draw through the cumulative sum: the same token in both frameworks but for rounding at a boundary.
    cumulative = probabilities.cumsum()
    return int(np.searchsorted(cumulative, generator.random() * cumulative[-1], side="right").clip(0, len(scaled) - 1))


def continue_text(
    adapter: Adapter, prompt: NDArray[np.int32], *, first_input: int, excluded: int | None, length: int, sampling: SamplingConfig
) -> Iterator[int]:
    """`length` token ids after those of `prompt`, ``[tokens]``, which may be empty; never the token `excluded`."""
    generator = np.random.default_rng(sampling.seed)
    state = adapter.zero_state(1)
    inputs = np.concatenate(([first_input], prompt)).astype(np.int32)
    for _ in range(length):
        logits_TBV, state = adapter.logits(inputs[:, None], state)
        logits_V = logits_TBV[-1, 0]
        if excluded is not None:
            logits_V[excluded] = -np.inf
        token = draw(logits_V, sampling, generator)
        yield token
        inputs = np.array([token], np.int32)


def generate(
    checkpoint: Path | str,
    prompt: str = "",
    *,
    length: int = 100,
    sampling: SamplingConfig | None = None,
    framework: str = "torch",
    threads: int | None = None,
) -> Iterator[str]:
    """Pieces of text that follow `prompt`, as they are made; each brings the blank or line break before it.

    Raises CheckpointError or FrameworkError, each with what to do.
    """
    loaded = checkpoints.load(Path(checkpoint))
    tokenizer = loaded.tokenizer
    adapter = adapter_class(framework)(threads=threads)
    adapter.build(loaded.model, loaded.optimizer)
    adapter.load_weights(loaded.weights)
    ids = tokenizer.encode_prompt(prompt)
    at_line_start = not prompt or prompt.endswith(("\n", " "))
    tokens = continue_text(
        adapter,
        ids,
        first_input=tokenizer.end_of_line_id,
        excluded=tokenizer.unknown_id,
        length=length,
        sampling=sampling or SamplingConfig(),
    )
    for token in tokens:
        text = tokenizer.token(token)
        yield text if at_line_start or text == "\n" else f" {text}"
        at_line_start = text == "\n"
