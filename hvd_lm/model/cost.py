"""What parts of a model cost, in numbers that no framework decides."""

from __future__ import annotations

import math
from functools import cache

from hvd_lm.config import ModelConfig
from hvd_lm.model.stages import parameters

LOGITS_TOGETHER = 1 << 26
"""Exponentials that a rank keeps while it waits for what the others know of the same tokens (256 MiB)."""


def tokens_together(words: int, ranks: int) -> int:
    """Tokens of a rank that it judges with the others at a time, where each of `ranks` holds up to `words` words."""
    return max(1, LOGITS_TOGETHER // (words * ranks))


@cache
def multiply_adds(model: ModelConfig) -> int:
    """Of one token on its way to the logits of all words."""
    table = "" if model.tie_embedding else "embedding"  # which is looked up
    return sum(math.prod(parameter.shape) for name, parameter in parameters(model).items() if name != table)


def vocabulary_split_bytes(
    model: ModelConfig, *, data_size: int, model_size: int, tokens: int, words: float, touched: float = 0, number_bytes: int = 4
) -> float:
    """Bytes that a rank sends in a window under a vocabulary split, mean over the ranks, without the headers of the link.

    `tokens`: of a rank in the window. `words`: distinct words of a look-up that other ranks hold, added up over the look-ups of the
    window, forward and backward (of the micro-batches that go backward together); mean over the ranks. `touched`: rows of the
    embedding that the window names on any rank, of a model rank (0 where D = 1). `number_bytes`: 4, or 2 with fp16.
    """
    ranks, others = data_size * model_size, model_size - 1
    split = {name for name, parameter in parameters(model).items() if parameter.split == "rows"}
    everywhere = sum(math.prod(parameter.shape) for name, parameter in parameters(model).items() if name not in split)
    rows = model.vocabulary_size / model_size  # type: ignore[operator]
    output = rows * (model.widths[-1] + 1)
    look_ups = words * (4 + number_bytes * model.embedding_size)
    activations = others * tokens * 2 * number_bytes * model.widths[-1]
    softmax = others * tokens * (8 + 12 * model_size)
    ring, of_data = 2 * (ranks - 1) / ranks, 2 * (data_size - 1) / data_size
    embedding = 0 if model.tie_embedding else 2 * rows + number_bytes * touched * model.embedding_size
    return look_ups + activations + softmax + ring * number_bytes * everywhere + of_data * (number_bytes * output + embedding)
