"""``hvd-lm sentiment evaluate`` and ``predict``: what a model that tells classes apart makes of texts.

Shapes: B texts read side by side, N texts, C classes, U units of all layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hvd_lm import checkpoint as checkpoints
from hvd_lm.checkpoint import Checkpoint
from hvd_lm.checkpoint.format import best_of
from hvd_lm.config import Framework
from hvd_lm.data.labelled import Columns, LabelledText, read_labelled
from hvd_lm.data.walk import STANDARD_INPUT
from hvd_lm.errors import CheckpointError, DataError, require, why
from hvd_lm.evaluation.endings import Endings, of_every_text
from hvd_lm.job.agreement import settings
from hvd_lm.job.launcher import launched_rank
from hvd_lm.model.weights import Array
from hvd_lm.paths import make_paths
from hvd_lm.tasks import state_features
from hvd_lm.tasks.class_figures import ClassFigures, class_figures
from hvd_lm.tasks.labels import MOST_TOKENS, numbers_of, token_ids
from hvd_lm.tasks.reading import reading, refuse_standard_input

READ_TOGETHER = 64
"""Texts of a rank, unless said otherwise."""
_OF_A_RANK = ("checkpoint", "data", "threads", "picture")
"""Settings that may differ between ranks; model and texts may not."""


@dataclass(frozen=True)
class ClassifyConfig:
    """What is read by what."""

    checkpoint: Path
    """The classifier: folder of a run of hvd-lm sentiment train (its best checkpoint), or of one checkpoint."""
    data: tuple[Path, ...]
    """Texts and their labels, as of hvd-lm sentiment train."""
    text_column: str = "text"
    """Column of the text: its name, or its number from 1 in rows that have no header."""
    framework: Framework = "torch"
    """Which framework computes; any can read any checkpoint."""
    batch_size: int = READ_TOGETHER
    """Texts of a rank that are read side by side. It changes the speed, not the result."""
    sequence_length: int | None = None
    """Most tokens of a text: of a longer one the last are read. Unless given: as in training."""
    threads: int | None = None
    """Compute threads of a rank. Unless given: the cores of the machine shared by its ranks."""

    def __post_init__(self) -> None:
        make_paths(self, "checkpoint", "data")
        require(bool(self.data), "--data needs texts")
        for name in ("batch_size", "sequence_length", "threads"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"--{name.replace('_', '-')} must be at least 1, not {value}")


@dataclass(frozen=True)
class ClassEvaluateConfig(ClassifyConfig):
    """Judge a classifier by texts whose labels are known, alone or on every rank of a horovodrun job."""

    label_column: str = "label"
    """Column of the label, as --text-column."""
    picture: Path | None = None
    """File for a picture of the confusion matrix (PNG)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        make_paths(self, "picture")


@dataclass(frozen=True)
class ClassPredictConfig(ClassifyConfig):
    """Say the label of each text, alone or on every rank of a horovodrun job."""

    data: tuple[Path, ...] = (STANDARD_INPUT,)
    """Texts: files as of hvd-lm sentiment train, whose labels are not read; .txt files with a text in each line; - is standard
    input, read in the same way."""
    json: bool = False
    """Print a JSON object for each text, with the probability of every label."""


@dataclass(frozen=True)
class Predicted:
    """What a classifier says of a text."""

    label: str
    """The most probable."""
    probabilities: dict[str, float]
    """Of every label."""


def evaluate(config: ClassEvaluateConfig) -> ClassFigures:
    """How well the labels of texts are found; rank 0 draws the picture. Collective.

    Raises CheckpointError, DataError, ConfigError, FrameworkError or LostWorkerError, each with what to do.
    """
    loaded = load_classifier(config.checkpoint)
    texts = read_labelled(config.data, Columns(config.text_column, config.label_column))
    numbers_N = numbers_of(texts, loaded.classes)
    figures = class_figures(loaded.classes, _read(config, loaded, texts), numbers_N)
    if config.picture and launched_rank() == 0:
        try:
            config.picture.write_bytes(figures.png())
        except OSError as error:
            raise DataError(f"cannot write {config.picture}: {why(error, config.picture)}") from error
    return figures


def predict(config: ClassPredictConfig) -> list[Predicted]:
    """The label of each text, in order, on every rank. Collective.

    Raises CheckpointError, DataError, ConfigError, FrameworkError or LostWorkerError, each with what to do.
    """
    refuse_standard_input(config.data, "--data")
    loaded = load_classifier(config.checkpoint)
    texts = read_labelled(config.data, Columns(config.text_column, None))
    found_NC = np.exp(_read(config, loaded, texts).astype(np.float64))
    classes = loaded.classes
    return [Predicted(classes[row_C.argmax()], dict(zip(classes, row_C.tolist(), strict=True))) for row_C in found_NC]


def _read(config: ClassifyConfig, loaded: Classifier, texts: Sequence[LabelledText]) -> Array:
    """Log-probabilities, ``float32 [N, C]``, on every rank. Collective."""
    most = config.sequence_length or loaded.most_tokens
    inputs = [token_ids(text.text, loaded.read.tokenizer, most, ended=loaded.ended) for text in texts]
    with reading(config.framework, config.threads, loaded.read, inputs, settings(config, without=_OF_A_RANK)) as adapter:
        found_NC = of_every_text(
            adapter, inputs, config.batch_size, most, len(loaded.classes), lambda of: log_softmax(loaded.logits(of))
        )
        adapter.job.agree()
    return found_NC


@dataclass(frozen=True)
class Classifier:
    """What is read, and how classes are told from it."""

    read: Checkpoint
    classes: tuple[str, ...]
    logits: Callable[[Endings], Array]
    """``float32 [B, C]``."""
    most_tokens: int
    """Of a text, in training."""
    ended: bool = True
    """Whether the model reads the end of a text, too."""


def load_classifier(folder: Path) -> Classifier:
    """The best checkpoint of a run that learned classes; its newest if nothing validated it; or the one that `folder` is. Or a
    language model with a regression on its states.

    Raises CheckpointError if there is none, it is damaged, or it is a language model alone.
    """
    found = checkpoints.load_model(best_of(folder) or folder)
    if regression := state_features.load(folder, found.model):
        return Classifier(found, regression.classes, regression.logits, regression.most_tokens, ended=False)
    if not found.model.classes:
        raise CheckpointError(
            f"{folder} holds a language model, which tells no classes apart: hvd-lm sentiment train makes one of it"
        )
    said: Any = (found.progress.settings or {}).get("data", {})
    return Classifier(found, found.model.classes, by_output, int(said.get("sequence_length", MOST_TOKENS)))


def by_output(of: Endings) -> Array:
    """What a model says whose output judges classes, ``float32 [B, C]``."""
    return of.logits_BV


def log_softmax(logits_BC: Array) -> Array:
    """Of each row."""
    shifted = logits_BC - logits_BC.max(1, keepdims=True)
    found: Array = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return found
