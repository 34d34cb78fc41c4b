"""Validations of a run: the loss of what is held out, the lowest so far, and how long ago that was."""

from __future__ import annotations

import math

from hvd_lm.adapters.base import Adapter
from hvd_lm.config import DataConfig
from hvd_lm.evaluation.figures import Evaluation
from hvd_lm.training.averages import Averages
from hvd_lm.training.dataset import Dataset


class Validations:
    """Those of one leg, which goes on from those before it."""

    def __init__(self, adapter: Adapter, dataset: Dataset, data: DataConfig, patience: int | None) -> None:
        self._adapter, self._dataset, self._data, self._patience = adapter, dataset, data, patience
        self.averages = Averages(adapter)
        self.best: float | None = None
        """The lowest `Evaluation.criterion`; None before the first that is a number."""
        self.since_best = 0
        """Validations after it, none of which was lower."""

    def run(self) -> Evaluation | None:
        """What the weights are worth now; None where nothing is held out. Collective."""
        if not self._dataset.has("validation"):
            return None
        with self.averages.judged():
            return self._dataset.judged("validation", self._adapter, self._data)

    def note(self, validation: Evaluation) -> bool:
        """Whether it is the best so far."""
        self.averages.note(validation.criterion)
        if math.isfinite(validation.criterion) and (self.best is None or validation.criterion < self.best):
            self.best, self.since_best = validation.criterion, 0
            return True
        self.since_best += 1
        return False

    @property
    def is_over(self) -> bool:
        """Whether so many have passed without a lower loss that the run ends."""
        return self._patience is not None and self.since_best >= self._patience

    @property
    def why_over(self) -> str:
        """The words for it."""
        return f"{self.since_best} validations in a row were not below the best"
