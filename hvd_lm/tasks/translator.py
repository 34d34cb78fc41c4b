"""``hvd-lm translate apply`` and ``evaluate``: what a model that translates makes of texts.

Texts with equally many tokens are read side by side, so nothing is padded; then a beam search goes on from all of them.

Shapes: T time, N texts, L most tokens of a translation.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hvd_lm import checkpoint as checkpoints
from hvd_lm.adapters.base import Adapter
from hvd_lm.checkpoint import Checkpoint
from hvd_lm.checkpoint.format import best_of
from hvd_lm.config import Framework
from hvd_lm.data.pairs import COLUMNS, read_pairs, read_sources
from hvd_lm.data.walk import STANDARD_INPUT
from hvd_lm.errors import CheckpointError, require
from hvd_lm.generation.beam_search import search
from hvd_lm.job.agreement import settings
from hvd_lm.paths import make_paths
from hvd_lm.tasks.pair_examples import source_ids
from hvd_lm.tasks.reading import reading, refuse_standard_input
from hvd_lm.tasks.translation_figures import TranslationFigures, metrics, translation_figures

_OF_A_RANK = ("checkpoint", "source", "target", "threads")
"""Settings that may differ between ranks; model and texts may not."""


@dataclass(frozen=True)
class TranslateConfig:
    """How texts are translated."""

    checkpoint: Path
    """The model: folder of a run of hvd-lm translate train (its best checkpoint), or of one checkpoint."""
    source: tuple[Path, ...] = (STANDARD_INPUT,)
    """Texts to translate, one a line; - is standard input; or tables (.tsv, .csv, .jsonl) with a column of them."""
    source_column: str = COLUMNS[0]
    """Tables: column of the text, its name, or its number from 1 in rows that have no header."""
    beams: int = 5
    """Beams of the search; 1 takes the likeliest token each time."""
    length_penalty: float = 1.0
    """Translations are ranked by log-probability / tokens ** this."""
    length_factor: float = 2.0
    """A translation has at most so many times the tokens of its source, and ten."""
    batch_size: int = 32
    """Texts of a rank that are translated side by side. It changes the speed, not the result."""
    framework: Framework = "torch"
    """Which framework computes; any can read any checkpoint."""
    threads: int | None = None
    """Compute threads of a rank. Unless given: the cores of the machine shared by its ranks."""

    def __post_init__(self) -> None:
        make_paths(self, "checkpoint", "source")
        require(bool(self.source), "--source needs texts to translate")
        for name in ("beams", "batch_size", "threads"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"--{name.replace('_', '-')} must be at least 1, not {value}")
        require(0 < self.length_factor < float("inf"), f"--length-factor must be above 0, not {self.length_factor}")
        require(np.isfinite(self.length_penalty), f"--length-penalty must be a number, not {self.length_penalty}")


@dataclass(frozen=True)
class TranslateApplyConfig(TranslateConfig):
    """Translate texts, alone or on every rank of a horovodrun job; an empty line stays one."""


@dataclass(frozen=True)
class TranslateEvaluateConfig(TranslateConfig):
    """Judge a model by texts whose translations are known, alone or on every rank of a horovodrun job."""

    target: tuple[Path, ...] = ()
    """The translations of --source, line by line: as many files. None: --source are tables with a column of them."""
    target_column: str = COLUMNS[1]
    """Tables: column of the translation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        make_paths(self, "target")


@dataclass(frozen=True)
class _Translated:
    texts: list[str]
    seconds: float
    """That it took, without what surrounds it."""


def apply(config: TranslateApplyConfig) -> list[str]:
    """The translation of each text, in order, on every rank. Collective.

    Raises CheckpointError, DataError, ConfigError, FrameworkError or LostWorkerError, each with what to do.
    """
    refuse_standard_input(config.source, "--source")
    return _translated(config, _load(config.checkpoint), read_sources(config.source, config.source_column)).texts


def evaluate(config: TranslateEvaluateConfig) -> TranslationFigures:
    """BLEU and chrF of the translations that a model makes. Collective.

    Raises as `apply`; FrameworkError if sacrebleu is absent.
    """
    metrics()  # or all would be translated in vain
    pairs = read_pairs(config.source, config.target, (config.source_column, config.target_column))
    found = _translated(config, _load(config.checkpoint), [pair.source for pair in pairs])
    return translation_figures(found.texts, [pair.target for pair in pairs], found.seconds)


def _load(folder: Path) -> Checkpoint:
    found = checkpoints.load_model(best_of(folder) or folder)
    if found.model.source_end is None:
        raise CheckpointError(f"{folder} holds a model that does not translate: hvd-lm translate train makes one that does")
    return found


def _translated(config: TranslateConfig, model: Checkpoint, texts: Sequence[str]) -> _Translated:
    """On every rank. Collective."""
    inputs = [source_ids(text, model.tokenizer, reverse=model.model.source_reversed) for text in texts]
    # A text without a token but its end has no translation.
    lengths = np.array([int(config.length_factor * len(ids)) + 10 if len(ids) > 1 else 0 for ids in inputs], np.int64)
    with reading(config.framework, config.threads, model, inputs, settings(config, without=_OF_A_RANK)) as adapter:
        began = time.perf_counter()
        # Every text is translated by one rank; ids count from 1, so that 0 is none, and the sum is what that rank has found.
        found_NL = np.zeros((len(texts), max(lengths, default=0)), np.int32)
        with adapter.job.trouble.noted():
            for number, ids in _of_rank(adapter, model, config, inputs, lengths):
                found_NL[number, : len(ids)] = np.array(ids, np.int32) + 1
        adapter.job.agree()
        found_NL = adapter.job.sum(found_NL)
        seconds = time.perf_counter() - began
    return _Translated([model.tokenizer.decode((ids[ids > 0] - 1).tolist()).strip() for ids in found_NL], seconds)


def _of_rank(
    adapter: Adapter, model: Checkpoint, config: TranslateConfig, inputs: Sequence[NDArray[np.int32]], lengths: NDArray[np.int64]
) -> Iterator[tuple[int, tuple[int, ...]]]:
    """The number of each text that this rank translates, and the tokens of its translation."""
    end = model.model.source_end
    for batch in _batches(adapter, config.batch_size, inputs, lengths):
        adapter.job.watch.sign()
        found = search(
            adapter,
            model.tokenizer,
            np.stack([inputs[number] for number in batch], axis=1),
            beams=config.beams,
            lengths=[int(lengths[number]) for number in batch],
            length_penalty=config.length_penalty,
            ends=lambda ids: ids[-1] == end,
            enough=config.beams,
        )
        for number, (best, *_) in zip(batch, found, strict=True):
            yield number, best.ids[:-1] if best.ids[-1] == end else best.ids


def _batches(adapter: Adapter, size: int, inputs: Sequence[NDArray[np.int32]], lengths: NDArray[np.int64]) -> Iterator[list[int]]:
    """The texts of this rank, those with equally many tokens together, the longest first."""
    by_length: dict[int, list[int]] = {}
    for number, ids in enumerate(inputs):
        if lengths[number]:
            by_length.setdefault(len(ids), []).append(number)
    topology = adapter.job.topology
    whole = [
        numbers[first : first + size]
        for _, numbers in sorted(by_length.items(), reverse=True)
        for first in range(0, len(numbers), size)
    ]
    yield from whole[topology.reader :: topology.readers]
