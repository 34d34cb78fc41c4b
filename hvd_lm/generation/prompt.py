"""What a person types, as tokens of a model: a prompt is not pre-tokenized as the training text may be."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hvd_lm.data.tokenizer import UNKNOWN, Tokenizer

_WORD = re.compile(r"(?P<before>[^\w\s]*)(?P<core>.*?)(?P<after>[^\w\s]*)", re.DOTALL)


@dataclass(frozen=True)
class Prompt:
    """A prompt as a model reads it."""

    ids: NDArray[np.int32]
    unknown: tuple[str, ...]
    """Words (or characters) that the vocabulary lacks, in any spelling that was tried."""


def read_prompt(tokenizer: Tokenizer, text: str) -> Prompt:
    """Tokens of `text`, whose last line goes on.

    A word that a word-level vocabulary lacks is tried without the punctuation around it (if the vocabulary has that by itself),
    and in lower, upper or title case, before it counts as <unk>.
    """
    text = text.encode("utf-8", "replace").decode("utf-8").replace("\r\n", "\n")
    if tokenizer.kind == "word":
        lines = [[part for word in line.split() for part in _known(tokenizer, word)] for line in text.split("\n")]
        unknown = [part for line in lines for part in line if not tokenizer.knows(part)]
        ids = tokenizer.encode_prompt("\n".join(" ".join(part for part in line) for line in lines))
    else:
        unknown = [] if tokenizer.unknown_id is None else [character for character in text if not tokenizer.knows(character)]
        ids = tokenizer.encode_prompt(text)
    return Prompt(ids, tuple(dict.fromkeys(unknown)))


def _known(tokenizer: Tokenizer, word: str) -> Iterator[str]:
    """The tokens that `word` stands for; itself if it is not known in any way."""
    if tokenizer.knows(word) or word == UNKNOWN:
        yield word
        return
    match = _WORD.fullmatch(word)
    assert match is not None
    before, core, after = match["before"], match["core"], match["after"]
    if core and all(map(tokenizer.knows, before + after)):
        yield from before
        yield _spelling(tokenizer, core)
        yield from after
    else:
        yield _spelling(tokenizer, word)


def _spelling(tokenizer: Tokenizer, word: str) -> str:
    return next((spelt for spelt in (word, word.lower(), word.capitalize(), word.upper()) if tokenizer.knows(spelt)), word)
