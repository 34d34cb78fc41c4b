"""Validations of a run: the loss of held-out text, the lowest so far, and how long ago that was."""

from __future__ import annotations

import math

from hvd_lm.adapters.base import Adapter
from hvd_lm.config import DataConfig
from hvd_lm.data.streams import Streams, Tokens
from hvd_lm.data.texts import Texts
from hvd_lm.evaluation.exact_loss import evaluation_streams, exact_loss
from hvd_lm.evaluation.figures import Evaluation
from hvd_lm.training.averages import Averages


class Validations:
    """Those of one leg, which goes on from those before it."""

    def __init__(self, adapter: Adapter, texts: Texts, data: DataConfig, patience: int | None) -> None:
        self._adapter, self._patience = adapter, patience
        self.averages = Averages(adapter)
        self._tokens = texts.validation
        self._streams = streams_of(adapter, texts, texts.validation, data) if len(texts.validation) else None
        self.best_loss: float | None = None
        """Nats per token; None before the first that is a number."""
        self.since_best = 0
        """Validations after it, none of which was lower."""

    def run(self) -> Evaluation | None:
        """What the weights are worth now; None where there is no held-out text. Collective."""
        if self._streams is None:
            return None
        with self.averages.judged():
            return evaluated(self._adapter, self._tokens, self._streams)

    def note(self, validation: Evaluation) -> bool:
        """Whether it is the best so far."""
        self.averages.note(validation.loss)
        if math.isfinite(validation.loss) and (self.best_loss is None or validation.loss < self.best_loss):
            self.best_loss, self.since_best = validation.loss, 0
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


def streams_of(adapter: Adapter, texts: Texts, tokens: Tokens, data: DataConfig) -> Streams:
    """Held-out `tokens`, cut for this rank as the text of training is."""
    return evaluation_streams(adapter, tokens, texts.tokenizer.end_of_line_id, data.batch_size, data.sequence_length)


def evaluated(adapter: Adapter, tokens: Tokens, streams: Streams) -> Evaluation:
    """What the weights make of `tokens`, of which `streams` are this rank's. Collective."""
    return Evaluation(exact_loss(adapter, streams) / len(tokens), len(tokens))
