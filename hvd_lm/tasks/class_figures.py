"""How well classes are told apart: accuracy, precision and recall of each, and who is taken for whom.

Shapes: N texts, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hvd_lm.model.weights import Array
from hvd_lm.report.plots import LIGHT, Theme, png_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class ClassFigures:
    """Of texts whose classes are known."""

    classes: tuple[str, ...]
    counts_CC: NDArray[np.int64]
    """Texts of each class (rows) that were taken for each class (columns)."""
    loss: float
    """Mean cross-entropy, nats per text."""

    @property
    def texts(self) -> int:
        """That were judged."""
        return int(self.counts_CC.sum())

    @property
    def accuracy(self) -> float:
        """The share of texts whose class was found."""
        return float(np.trace(self.counts_CC) / self.counts_CC.sum())

    @property
    def recall(self) -> Sequence[float]:
        """Of each class: the share of its texts that were taken for it; NaN if it has none."""
        return _shares(np.diag(self.counts_CC), self.counts_CC.sum(1))

    @property
    def precision(self) -> Sequence[float]:
        """Of each class: the share of what was taken for it that was of it; NaN if nothing was."""
        return _shares(np.diag(self.counts_CC), self.counts_CC.sum(0))

    @property
    def f1(self) -> Sequence[float]:
        """Of each class: the harmonic mean of precision and recall; NaN if it has no texts and none was taken for it."""
        return _shares(2 * np.diag(self.counts_CC), self.counts_CC.sum(0) + self.counts_CC.sum(1))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; NaN is None."""
        of_classes = zip(self.classes, self.counts_CC.sum(1).tolist(), self.precision, self.recall, self.f1, strict=True)
        return {
            "accuracy": self.accuracy,
            "loss": self.loss,
            "texts": self.texts,
            "classes": {
                name: {"texts": count, "precision": _or_none(precision), "recall": _or_none(recall), "f1": _or_none(f1)}
                for name, count, precision, recall, f1 in of_classes
            },
            "confusion": self.counts_CC.tolist(),
        }

    def png(self) -> bytes:
        """The confusion matrix as a PNG file."""
        return png_of(lambda: draw(self), LIGHT)


def class_figures(classes: Sequence[str], log_probabilities_NC: Array, numbers_N: NDArray[np.int32]) -> ClassFigures:
    """Of texts that were judged so, and are of the classes of these numbers."""
    counts_CC = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(counts_CC, (numbers_N, log_probabilities_NC.argmax(1)), 1)
    loss = -float(log_probabilities_NC[np.arange(len(numbers_N)), numbers_N].mean(dtype=np.float64))
    return ClassFigures(tuple(classes), counts_CC, loss)


def _shares(part: NDArray[np.int64], whole: NDArray[np.int64]) -> list[float]:
    return [float(some / all_) if all_ else float("nan") for some, all_ in zip(part, whole, strict=True)]


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else value


def draw(figures: ClassFigures, theme: Theme = LIGHT) -> Figure:
    """The confusion matrix as a matplotlib figure: a square is as dark as the share of the class in its row, and has its count."""
    from matplotlib.figure import Figure

    count = len(figures.classes)
    figure = Figure(figsize=(3.4 + 0.6 * count, 2.8 + 0.5 * count), dpi=160, layout="constrained")
    axes = figure.subplots()
    shares_CC = figures.counts_CC / np.maximum(1, figures.counts_CC.sum(1, keepdims=True))
    axes.imshow(shares_CC, cmap="Blues", vmin=0, vmax=1)
    for row in range(count):
        for column in range(count):
            ink = theme.background if shares_CC[row, column] > 0.5 else theme.ink
            text = f"{figures.counts_CC[row, column]:,}\n{shares_CC[row, column]:.0%}"
            axes.text(column, row, text, ha="center", va="center", color=ink)
    axes.set_xticks(range(count), figures.classes)
    axes.set_yticks(range(count), figures.classes)
    axes.grid(visible=False)
    axes.set_xlabel("taken for")
    axes.set_ylabel("class")
    axes.set_title(f"{figures.texts:,} texts, accuracy {figures.accuracy:.1%}", loc="left", fontweight="bold")
    return figure
