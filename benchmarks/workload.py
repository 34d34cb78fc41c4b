"""The work that every peer does: model, text, micro-batches, accumulation, optimizer; kept in a folder that all ranks read."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hvd_lm.config import ModelConfig
from hvd_lm.data.corpus import embedded_corpus
from hvd_lm.data.tokenizer import train_word_level
from hvd_lm.model import stages

_WORDS_PER_LINE = 20
_SPECIAL_TOKENS = 2


@dataclass(frozen=True)
class Workload:
    """The reference model and recipe; without clipping, because Keras clips before the reduction and all others after it."""

    vocabulary_size: int = 10_000
    """Rows of the embedding (V)."""
    embedding_size: int = 300
    """Width of an embedding (E)."""
    hidden_size: int = 1024
    """Units of an LSTM layer (H)."""
    layers: int = 2
    """LSTM layers (L)."""
    batch_size: int = 8
    """Sequences in a micro-batch of one rank (B)."""
    sequence_length: int = 32
    """Tokens in a sequence (T)."""
    accumulation: int = 10
    """Micro-batches in a window (N)."""
    warmup: int = 2
    """Windows before the clock counts."""
    windows: int = 5
    """Windows that are timed."""
    ranks: int = 2
    """Ranks of the peers that are distributed."""
    threads: int = 1
    """Compute threads of a rank."""
    learning_rate: float = 1e-4
    """Adam's; betas 0.9 and 0.999, epsilon 1e-8. Small: without clipping and warm-up a curve that explodes would compare noise."""
    text: Literal["zipf", "embedded"] = "zipf"
    """zipf: synthetic words, frequency as in language. embedded: the prose that ships with Python, repeated."""
    seed: int = 1
    """Of the weights and of the synthetic text."""

    @property
    def model(self) -> ModelConfig:
        return ModelConfig(self.vocabulary_size, self.embedding_size, self.hidden_size, self.layers)

    def tokens_per_window(self, ranks: int) -> int:
        return ranks * self.batch_size * self.sequence_length * self.accumulation

    @property
    def parameters(self) -> int:
        """Trainable values of the model."""
        return sum(math.prod(parameter.shape) for parameter in stages.parameters(self.model).values())

    @property
    def flops_per_token(self) -> int:
        """Of the matrix products, forward and backward (2 + 4 a weight); the embedding is a look-up."""
        shapes = [one.shape for stage in stages.stages(self.model) if stage.kind != "lookup" for one in stage.parameters.values()]
        return 6 * sum(math.prod(shape) for shape in shapes if len(shape) == 2)

    @property
    def state_bytes(self) -> int:
        """Weights, gradients and both moments of Adam, in float32."""
        return 4 * 4 * self.parameters

    @property
    def activation_bytes(self) -> int:
        """What the backward of one micro-batch needs: embeddings; gates, c and h of the layers; logits and their gradient."""
        lookup, *layers, output = stages.stages(self.model)
        values = lookup.output_size + sum(6 * layer.units for layer in layers) + 2 * output.output_size
        return 4 * self.batch_size * self.sequence_length * values

    @property
    def needed_bytes(self) -> int:
        """What a rank cannot do without."""
        return self.state_bytes + self.activation_bytes


def small(workload: Workload) -> Workload:
    """The twin for trials: everything that costs time is small."""
    return replace(workload, vocabulary_size=1000, embedding_size=32, hidden_size=64, batch_size=4, sequence_length=16)


def prepare(workload: Workload, folder: Path) -> None:
    """Write the work into `folder`: work.json, text.txt (for peers that read text) and tokens.npy (the same, tokenized)."""
    folder.mkdir(parents=True, exist_ok=True)
    # One text serves one rank and all of them; no stream may end within a run.
    count = workload.tokens_per_window(workload.ranks) * (workload.warmup + workload.windows) + 2 * workload.vocabulary_size
    text = _zipf_text(workload, count) if workload.text == "zipf" else _repeated_corpus(count)
    tokenizer = train_word_level(text, workload.vocabulary_size)
    vocabulary_size = tokenizer.vocabulary_size
    (folder / "text.txt").write_text(text, encoding="utf-8")
    np.save(folder / "tokens.npy", tokenizer.encode(text))
    values = asdict(replace(workload, vocabulary_size=vocabulary_size)) | {"first_input": tokenizer.end_of_line_id}
    (folder / "work.json").write_text(json.dumps(values, indent=1), encoding="utf-8")


def read(folder: Path) -> tuple[Workload, NDArray[np.int32], int]:
    """The work in `folder`: settings, tokens, and the token before the first of them."""
    values = json.loads((folder / "work.json").read_text(encoding="utf-8"))
    first_input = values.pop("first_input")
    return Workload(**values), np.load(folder / "tokens.npy"), first_input


def _zipf_text(workload: Workload, count: int) -> str:
    """`count` words of frequency ~ 1 / (rank + 2.7), every word of the vocabulary among them."""
    words = workload.vocabulary_size - _SPECIAL_TOKENS
    generator = np.random.default_rng(workload.seed)
    weights = 1.0 / (np.arange(words) + 2.7)
    drawn = generator.choice(words, size=count - words, p=weights / weights.sum())
    ids = generator.permutation(np.concatenate((np.arange(words), drawn)))
    lines = (ids[start : start + _WORDS_PER_LINE] for start in range(0, len(ids), _WORDS_PER_LINE))
    return "".join(" ".join(f"w{i}" for i in line) + "\n" for line in lines)


def _repeated_corpus(count: int) -> str:
    corpus = embedded_corpus() + "\n"
    return corpus * -(-count // len(corpus.split()))
