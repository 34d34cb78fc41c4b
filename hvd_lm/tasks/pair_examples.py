"""Pairs of texts as a model that translates reads them: a source, what ends it, and the translation, of which alone it learns.

    inputs    s1 s2 s3 <eos> t1 t2          targets   - - - t1 t2 <eos>

So it is a language model of lines that come in twos. <eos> is the line break of the tokenizer.

Shapes: T time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from hvd_lm.data.examples import Examples, examples_of
from hvd_lm.data.pairs import Pair
from hvd_lm.data.sources import IGNORED
from hvd_lm.data.tokenizer import Tokenizer


def source_ids(text: str, tokenizer: Tokenizer, *, reverse: bool) -> NDArray[np.int32]:
    """What a model reads of a source, ``int32 [T]``: its tokens, in reverse order if so (Sutskever et al. 2014), and its end."""
    ids_T = tokenizer.encode_block(text)
    return np.append(ids_T[::-1] if reverse else ids_T, np.int32(tokenizer.end_of_line_id))


def examples(pairs: Sequence[Pair], tokenizer: Tokenizer, most: int, *, reverse: bool) -> Examples:
    """Of all pairs that have together at most so many tokens."""
    inputs, targets = [], []
    for pair in pairs:
        source_T = source_ids(pair.source, tokenizer, reverse=reverse)
        target_T = np.append(tokenizer.encode_block(pair.target), np.int32(tokenizer.end_of_line_id))
        if len(source_T) + len(target_T) <= most:
            inputs.append(np.concatenate([source_T, target_T[:-1]]))
            targets.append(np.concatenate([np.full(len(source_T) - 1, IGNORED, np.int32), target_T]))
    return examples_of(inputs, targets)


def texts_of(pairs: Iterable[Pair]) -> list[str]:
    """Both sides, as a tokenizer learns from them."""
    return [f"{pair.source}\n{pair.target}\n" for pair in pairs]
