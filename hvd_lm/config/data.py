"""The texts, and how they are cut."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hvd_lm.data.sequence_lengths import SHORTEST
from hvd_lm.errors import require
from hvd_lm.paths import make_paths

VALIDATION_SHARE = 0.05
"""Of a text, unless said otherwise."""


@dataclass(frozen=True)
class DataConfig:
    """What is read, and how it is cut into micro-batches."""

    data: tuple[Path, ...] = ()
    """A folder that hvd-lm prepare made, or UTF-8 texts to train on, one after the other (files, also compressed, folders,
    globs). None: English prose that ships with Python (pydoc_data.topics)."""
    validation_data: tuple[Path, ...] = ()
    """Texts to validate on. None: the validation split of a prepared folder, or the last part of the training text
    (see --validation-share)."""
    validation_share: float | None = None
    """Share of the text, at its end, kept for validation unless --validation-data is given; 0 for no validation. Unless given:
    0.05, or the validation split of a prepared folder."""
    validation_cut: Literal["lines", "tokens"] = "lines"
    """Where a plain text is cut for validation. lines: at the end of a line, before words are counted, as hvd-lm prepare does.
    tokens: anywhere, with the words of both parts in the vocabulary; for going on with runs that began so."""
    batch_size: int = 8
    """Sequences in a micro-batch of one rank (B)."""
    sequence_length: int = 32
    """Tokens in a sequence of a micro-batch (T): how far gradients flow back in time."""
    random_lengths: bool = False
    """Draw the length of every micro-batch's sequences: about T, one of twenty about T / 2 (normal, of deviation 5, at least 5
    tokens). The learning rate is multiplied by length / T (Merity et al. 2017)."""

    def __post_init__(self) -> None:
        make_paths(self, "data", "validation_data")
        for name in ("batch_size", "sequence_length"):
            require(getattr(self, name) >= 1, f"--{name.replace('_', '-')} must be at least 1, not {getattr(self, name)}")
        require(
            not self.random_lengths or self.sequence_length >= 2 * SHORTEST,
            f"--random-lengths needs a --sequence-length of at least {2 * SHORTEST}, not {self.sequence_length}",
        )
        require(
            self.validation_share is None or 0.0 <= self.validation_share < 1.0,
            f"--validation-share must be in [0, 1), not {self.validation_share}",
        )
