"""Labelled texts as a model of classes reads them: token ids, and the number of a class after the last.

Shapes: T time, N texts, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hvd_lm.data.examples import Examples, examples_of
from hvd_lm.data.labelled import LabelledText
from hvd_lm.data.sources import IGNORED
from hvd_lm.data.tokenizer import Tokenizer
from hvd_lm.errors import DataError

MOST_TOKENS = 400
"""Of a text, unless said otherwise."""


def classes_of(texts: Sequence[LabelledText]) -> tuple[str, ...]:
    """The labels, sorted. Raises DataError if there is only one."""
    found = sorted({str(text.label) for text in texts})
    if len(found) < 2:
        raise DataError(f"all {len(texts)} texts have the label {found[0]}: two classes at least are needed to tell apart")
    return tuple(found)


def numbers_of(texts: Sequence[LabelledText], classes: Sequence[str]) -> NDArray[np.int32]:
    """The class of each text, ``int32 [N]``. Raises DataError for a label that is no class."""
    places = {name: place for place, name in enumerate(classes)}
    if unknown := sorted({str(text.label) for text in texts} - places.keys()):
        raise DataError(f"the label {unknown[0]} is none of those that the model tells apart: {', '.join(classes)}")
    return np.array([places[str(text.label)] for text in texts], np.int32)


def token_ids(text: str, tokenizer: Tokenizer, most: int, *, ended: bool = True) -> NDArray[np.int32]:
    """What a model reads of a text, ``int32 [T]``: <eos>, the text and, if it is to be `ended`, <eos>; of a long one the last
    `most` tokens."""
    end = np.array([tokenizer.end_of_line_id], np.int32)
    return np.concatenate([end, tokenizer.encode_block(text.rstrip("\n")), end[: int(ended)]])[-most:]


def examples(
    texts: Sequence[LabelledText], classes: Sequence[str], tokenizer: Tokenizer, most: int, *, everywhere: bool = False
) -> Examples:
    """Of each text the class, after its last token; or `everywhere`, after each. Raises DataError for a label that is no class."""
    inputs = [token_ids(text.text, tokenizer, most) for text in texts]
    targets = []
    for ids_T, number in zip(inputs, numbers_of(texts, classes), strict=True):
        targets_T = np.full(len(ids_T), number if everywhere else IGNORED, np.int32)
        targets_T[-1] = number
        targets.append(targets_T)
    return examples_of(inputs, targets)
