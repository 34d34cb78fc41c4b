"""What the model writes while it is trained, for people to read: by rank 0, which has all of it."""

from __future__ import annotations

from hvd_lm.adapters.base import Adapter
from hvd_lm.data.tokenizer import Tokenizer
from hvd_lm.generation.sampling import SamplingConfig
from hvd_lm.generation.text import Writer

LENGTH = 40
"""Tokens of a sample."""


class Samples:
    """One text every so many steps."""

    def __init__(self, adapter: Adapter, tokenizer: Tokenizer, every: int | None, prompt: str) -> None:
        self._writer = Writer(adapter, tokenizer) if every and adapter.job.topology.is_writer else None
        self._every, self._prompt = every or 1, prompt

    def after(self, step: int) -> str | None:
        """The one that is due after `step`, which alone decides what is drawn: `--sample-prompt`, and what follows."""
        if self._writer is None or step % self._every:
            return None
        (text,) = self._writer.samples(self._prompt, length=LENGTH, sampling=SamplingConfig(seed=step))
        return self._prompt + text
