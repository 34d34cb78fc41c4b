"""What an evaluation tells: the loss of a text per token, word, character and byte."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from hvd_lm.data.counts import TextCounts


@dataclass(frozen=True)
class Evaluation:
    """Cross-entropy of a text under the model."""

    loss: float
    """Mean cross-entropy, nats per token."""
    tokens: int
    """Targets that were predicted, on all ranks."""
    text: TextCounts = field(default_factory=TextCounts)
    """How much text the tokens are."""
    accuracy: float | None = None
    """The share of examples whose class was found, of a model that tells classes apart; then a token is one such."""

    @property
    def perplexity(self) -> float:
        """Per token; infinite where that is beyond a float."""
        return _exp(self.loss)

    @property
    def criterion(self) -> float:
        """What the best weights have least of: the loss; of a model that tells classes apart the share of errors, since its loss
        rises with its confidence while errors still get fewer (Guo et al. 2017, arXiv:1706.04599)."""
        return self.loss if self.accuracy is None else 1.0 - self.accuracy

    @property
    def headline(self) -> dict[str, float]:
        """What is told of it beside the loss, by its name: the accuracy, or else the perplexity."""
        return {"perplexity": self.perplexity} if self.accuracy is None else {"accuracy": self.accuracy}

    @property
    def bits_per_character(self) -> float:
        """Line breaks count as characters."""
        return self._per(self.text.characters) / math.log(2)

    @property
    def bits_per_byte(self) -> float:
        """Of UTF-8."""
        return self._per(self.text.bytes) / math.log(2)

    @property
    def word_perplexity(self) -> float:
        """Per word between blanks and line break, which is what a token is to word level: comparable between tokenizers."""
        return _exp(self._per(self.text.words + self.text.lines))

    def _per(self, units: int) -> float:
        """Nats per unit."""
        return self.loss * self.tokens / units if units else math.nan


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
