"""Dropout masks, made in NumPy from counters: the same for both frameworks and for any split of the streams over ranks.

A mask is a pure function of (seed, stream, micro-batch, place), through Philox (Salmon et al. 2011, "Parallel random
numbers: as easy as 1, 2, 3"), so a resumed run needs no saved generator state.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from hvd_lm.config import ModelConfig
from hvd_lm.model.stages import stages

_LEVELS = 1 << 16


def dropout_widths(config: ModelConfig) -> list[int]:
    """Width of each place that drops, from below: the embedding, then the output of every layer; none without dropout."""
    return [stage.output_size for stage in stages(config) if stage.kind == "drop"]


def dropout_masks(
    rate: float, *, widths: Iterable[int], sequence_length: int, stream_ids: Iterable[int], micro_batch: int, seed: int
) -> list[NDArray[np.bool_]]:
    """For each of `widths` a mask ``bool [T, B, width]``, True where an activation is kept; none at all if `rate` is 0.

    `micro_batch` counts over all epochs. `keep_probability` is the exact share that the masks keep.
    """
    if rate == 0.0:
        return []
    dropped = round(rate * _LEVELS)
    masks: list[NDArray[np.bool_]] = []
    for place, width in enumerate(widths):
        columns = []
        for stream in stream_ids:
            generator = np.random.Generator(np.random.Philox(key=[seed, stream], counter=[0, 0, place, micro_batch]))
            levels = generator.integers(0, _LEVELS, (sequence_length, width), np.uint16)
            columns.append(levels >= dropped)
        masks.append(np.stack(columns, axis=1))
    return masks


def keep_probability(rate: float) -> float:
    """The share of activations that `dropout_masks` keeps; activations are divided by it."""
    return 1.0 - round(rate * _LEVELS) / _LEVELS
