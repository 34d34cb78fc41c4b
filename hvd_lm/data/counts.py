"""How much text a sequence of tokens stands for: what per-word and per-character figures are divided by."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from functools import partial

import numpy as np
from numpy.typing import NDArray

from hvd_lm.data.blanks import words
from hvd_lm.data.tokenizer import Tokenizer, TokenizerKind
from hvd_lm.job.helpers import Spread, in_turn
from hvd_lm.job.messages import warn

_LONG_WORD = 20
"""Characters: words of Finnish have 9 in the mean; of Chinese, where only lines are set apart, 30 and more."""


@dataclass(frozen=True)
class TextCounts:
    """Tokens, and the text that they came from."""

    tokens: int = 0
    unknown: int = 0
    """Tokens that are <unk>."""
    characters: int = 0
    """Line breaks included."""
    bytes: int = 0
    """In UTF-8."""
    words: int = 0
    """Between blanks, as the word-level tokenizer splits."""
    lines: int = 0

    def __add__(self, other: TextCounts) -> TextCounts:
        return TextCounts(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    @property
    def unknown_share(self) -> float:
        """Out-of-vocabulary rate, among all tokens."""
        return self.unknown / self.tokens if self.tokens else 0.0


def _count_text(text: str) -> TextCounts:
    size = len(text.encode("utf-8", "replace"))
    return TextCounts(characters=len(text), bytes=size, words=len(words(text)), lines=text.count("\n"))


def _encode(tokenizer: Tokenizer, block: str) -> tuple[NDArray[np.int32], TextCounts]:
    """The tokens of a block, and how much text it is."""
    ids = tokenizer.encode_block(block)
    return ids, _count_text(block) + _count_tokens(ids, tokenizer)


def _count_tokens(ids: NDArray[np.int32], tokenizer: Tokenizer) -> TextCounts:
    unknown = 0 if tokenizer.unknown_id is None else int(np.count_nonzero(ids == tokenizer.unknown_id))
    return TextCounts(tokens=len(ids), unknown=unknown)


class CountedTokens:
    """The token ids of a split, counted as they pass."""

    def __init__(self, blocks: Iterable[str], tokenizer: Tokenizer, spread: Spread = in_turn) -> None:
        self._blocks, self._tokenizer, self._spread = blocks, tokenizer, spread
        self._last = "\n"
        self.counts = TextCounts()

    def __iter__(self) -> Iterator[NDArray[np.int32]]:
        for ids, counts in self._spread(partial(_encode, self._tokenizer), self._read()):
            self.counts += counts
            yield ids
        if not self._last.endswith("\n"):
            end = self._tokenizer.end_of(self._last)
            self.counts += TextCounts(lines=1) + _count_tokens(end, self._tokenizer)
            yield end

    def _read(self) -> Iterator[str]:
        for block in self._blocks:
            self._last = block
            yield block


def warn_of_long_words(counts: TextCounts, kind: TokenizerKind) -> None:
    """Tell the user if `kind` is word and the text seems to set no words apart."""
    if kind == "word" and counts.characters > _LONG_WORD * max(1, counts.words):
        mean = counts.characters // max(1, counts.words)
        warn(
            f"the text has few blanks ({mean} characters a word), so that most words will be <unk>: hvd-lm prepare it with "
            "--tokenizer char or bpe"
        )
