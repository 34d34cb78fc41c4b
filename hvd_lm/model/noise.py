"""Dropout masks, made in NumPy from counters: the same for both frameworks and for any split of the streams over ranks.

A mask of activations is a pure function of (seed, stream, micro-batch, place), one of words of (seed, step), one of weights of
(seed, layer, step), through Philox (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), so a resumed run needs no
saved generator state.

Shapes: T time, B sequences, V vocabulary, H units of a layer, P what it gives (H, unless it projects).
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hvd_lm.config import ModelConfig
from hvd_lm.model.stages import stages

Mask = NDArray[np.bool_]
_LEVELS = 1 << 16
_OF_WORDS, _OF_WEIGHTS = 2**63 - 2, 2**63 - 3
"""In place of a stream's number: no mask of activations shares their random numbers (nor do `candidates`, with the one above)."""


def dropout_widths(config: ModelConfig) -> list[int]:
    """Width of each place where activations may drop, from below: the embedding, then the output of every layer."""
    return [config.embedding_size, *config.widths]


def dropout_masks(
    rates: float | Sequence[float],
    *,
    widths: Iterable[int],
    sequence_length: int,
    stream_ids: Iterable[int],
    micro_batch: int,
    seed: int,
    locked: bool = False,
) -> list[Mask]:
    """For each of `widths` a mask ``bool [T, B, width]``, True where an activation is kept; none at places whose rate is 0.

    `rates`: of each place, or one of all. `micro_batch` counts over all epochs. Masks that are `locked` are the same at all steps,
    and have 1 for T. `keep_probability` is the exact share that masks keep.
    """
    widths = list(widths)
    of_places = [rates] * len(widths) if isinstance(rates, (int, float)) else rates
    masks: list[Mask] = []
    for place, (rate, width) in enumerate(zip(of_places, widths, strict=True)):
        if rate == 0.0:
            continue
        columns = []
        for stream in stream_ids:
            shape = (1 if locked else sequence_length, width)
            columns.append(_kept(rate, shape, key=(seed, stream), counter=(place, micro_batch)))
        masks.append(np.stack(columns, axis=1))
    return masks


def _kept(rate: float, shape: tuple[int, ...], *, key: tuple[int, int], counter: tuple[int, int]) -> Mask:
    """True where something is kept."""
    generator = np.random.Generator(np.random.Philox(key=list(key), counter=[0, 0, *counter]))
    return generator.integers(0, _LEVELS, shape, np.uint16) >= round(rate * _LEVELS)


@dataclass(frozen=True)
class StepNoise:
    """What is drawn once for an optimizer step: the same on all ranks, and for all micro-batches of its window."""

    words_V: Mask | None
    """True for words whose embedding is kept; None where none drop."""

    def masks(self, inputs_TB: NDArray[np.int32], of_activations: Sequence[Mask]) -> list[Mask]:
        """Of all that drops in a micro-batch, from below: of words, ``bool [T, B, 1]``, then those of activations."""
        return [*([] if self.words_V is None else [self.words_V[inputs_TB][..., None]]), *of_activations]


def step_noise(config: ModelConfig, *, step: int, seed: int) -> StepNoise:
    """That of optimizer step `step`, the first of which is 1."""
    words_V = None
    if config.embedding_dropout:
        assert config.vocabulary_size is not None
        words_V = _kept(config.embedding_dropout, (config.vocabulary_size,), key=(seed, _OF_WORDS), counter=(0, step))
    return StepNoise(words_V)


def weight_masks(config: ModelConfig, names: Container[str], *, step: int, seed: int) -> dict[str, Mask]:
    """Of optimizer step `step`, the first of which is 1: of each recurrent kernel among `names`, ``bool [4H, P]``, True where a
    weight is kept; none at all if none drop."""
    if not config.weight_dropout:
        return {}
    kernels = [stage.parameters["recurrent_kernel"] for stage in stages(config) if "recurrent_kernel" in stage.parameters]
    return {
        kernel.name: _kept(config.weight_dropout, kernel.shape, key=(seed, _OF_WEIGHTS), counter=(layer, step))
        for layer, kernel in enumerate(kernels)
        if kernel.name in names
    }


def keep_probability(rate: float) -> float:
    """The share of activations that `dropout_masks` keeps; activations are divided by it."""
    return 1.0 - round(rate * _LEVELS) / _LEVELS
