"""What a window sends, and when: the tensors of the last backward, in the order in which it completes them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from hvd_lm.communication.ring import CollectiveName
from hvd_lm.compression.compressors import PowerSGD
from hvd_lm.compression.selectors import TopK, sampling
from hvd_lm.config import CommunicationConfig, DataConfig, ModelConfig
from hvd_lm.model.parameters import Parameter
from hvd_lm.model.pipeline import multiplications
from hvd_lm.model.split import blocks
from hvd_lm.model.stages import Stage, parameters, stages

_FLAGS = 32
"""Bytes that travel with the loss, itself among them: four numbers of 64 bits."""


@dataclass(frozen=True)
class Sent:
    """A tensor that a collective operation takes."""

    name: str
    ready: float
    """Seconds since the last backward of the window began."""
    size: float
    """Bytes."""
    number_format: str
    compressed: float = 0.0
    """Values of the gradient in whose place it travels; 0 of what travels as it is."""
    second: float = 0.0
    """Bytes of the message that is made of the sum of this one, and follows it."""
    collective: CollectiveName = "allreduce"
    cast: float = 0.0
    """Values that are cast to the number format in which they travel, and back."""
    selection: Selection | None = None
    """Of values that each rank selects: what that takes."""
    ranks: int = 0
    """That take part; 0 for all."""


@dataclass(frozen=True)
class Selection:
    """Of the values of a window that travel (hvd_lm.compression.selectors)."""

    values: float
    """That are selected from."""
    sorted: float
    """Those of the samples, and those that reach their thresholds."""
    received: float
    """Of all ranks."""
    has_momentum: bool


def gradients(
    model: ModelConfig, data: DataConfig, communication: CommunicationConfig, ranks: int, backward: float
) -> tuple[Sent, ...]:
    """Of a window, in the order of time, where the last backward takes `backward` seconds.

    A stage takes the share of its multiplications: four for each weight and token, and in the output layer, whose forward comes
    with its backward, six. What it has is complete when it is done, the largest first. Under PowerSGD a matrix travels as two
    messages, in every step: those that it begins with, exactly, are few. With top-k one message has the selected values of all
    matrices, after the backward. In a step of a rank's own (`reduce_every`) no gradient travels. The time that compression takes
    is not in `ready`.
    """
    return tuple(_gradients(model, data, communication, ranks, backward))


def _gradients(
    model: ModelConfig, data: DataConfig, communication: CommunicationConfig, ranks: int, backward: float
) -> Iterator[Sent]:
    declared = stages(model)
    work = [backward_multiplications(stage) for stage in declared]
    number_format, item = ("float16", 2) if communication.compression == "fp16" else ("float32", 4)
    powersgd = PowerSGD(communication.powersgd_rank) if communication.compression == "powersgd" else None
    topk = TopK(communication.topk_share, communication.topk_momentum) if communication.compression == "topk" else None
    selected = {
        name: count
        for name, parameter in parameters(model).items()
        if topk and (count := topk.count(name, parameter.shape, step=0))
    }
    tokens = data.batch_size * data.sequence_length * communication.backward_passes_per_step
    looked_up = {one.looked_up for stage in declared for one in stage.parameters.values() if one.name not in selected}
    looked_up = set() if communication.reduce_every > 1 else looked_up
    vocabulary = declared[0].input_size
    if "inputs" in looked_up:
        yield Sent("touched_rows", 0.0, 2.0 * vocabulary, "float16")
    done = 0.0
    for stage, its in reversed(list(zip(declared, work, strict=True))):
        done += its
        now = backward * done / sum(work)
        if is_output(stage):
            if "output" in looked_up:
                yield Sent("touched_rows.output", now, 2.0 * vocabulary, "float16")
            yield Sent("loss", now, _FLAGS, "float64")
        of_stage = sorted(stage.parameters.values(), key=lambda parameter: -math.prod(parameter.shape))
        for parameter in of_stage:
            if is_output(stage) and any(parameter is other for other in declared[0].parameters.values()):
                continue  # tied: the lookup completes it
            if communication.reduce_every > 1 or parameter.name in selected:
                continue
            rows = _rows(parameter, model, tokens * ranks, communication.backward_passes_per_step * ranks)
            values = rows * math.prod(parameter.shape[1:])
            name = f"gradient.{parameter.name}"
            if powersgd and powersgd.compresses(parameter.shape):
                narrow, of_row = ("float16", 2) if communication.powersgd_halves else ("float32", 4)
                of_row *= powersgd.rank
                yield Sent(name, now, of_row * rows, narrow, compressed=values, second=of_row * parameter.shape[1])
            else:
                yield Sent(name, now, item * values, number_format, cast=values if item < 4 else 0.0)
    if topk and selected:
        yield _selected(model, topk, selected, ranks, backward)


def _selected(model: ModelConfig, topk: TopK, counts: Mapping[str, int], ranks: int, ready: float) -> Sent:
    """What each rank selects, so many values of each parameter and their places, in one message that all ranks get of all."""
    shapes = {name: parameters(model)[name].shape for name in counts}
    samples = {name: sampling(math.prod(shape), math.prod(shape[1:]), counts[name]) for name, shape in shapes.items()}
    received = ranks * sum(counts.values())
    selection = Selection(
        values=sum(map(math.prod, shapes.values())),
        sorted=sum(its.sampled + its.place * its.stride for its in samples.values()),
        received=received,
        has_momentum=topk.momentum > 0,
    )
    # float32 and int32 travel as one kind, of four bytes.
    return Sent("gradient.selected", ready, 8.0 * received, "float32", collective="allgather", selection=selection)


def late(sent: Iterable[Sent], later: float) -> tuple[Sent, ...]:
    """What is on its way beside a window whose last backward begins `later` seconds after it, where `sent` is that of a last
    backward: the gradients of the window before, from its beginning on, and what tells of this one."""
    gradients = [replace(one, ready=0.0) for one in sent if one.name.startswith("gradient.")]
    rest = [replace(one, ready=later + one.ready) for one in sent if not one.name.startswith("gradient.")]
    return (*gradients, *rest)


def average(model: ModelConfig) -> tuple[Sent, ...]:
    """What travels when ranks average their weights, in that order: blocks of rows."""
    return tuple(
        Sent(f"{name}.{rows.start}", 0.0, 4.0 * len(rows) * math.prod(parameter.shape[1:]), "float32")
        for name, parameter in parameters(model).items()
        for rows in blocks(range(parameter.shape[0]), parameter.shape)
    )


def backward_multiplications(stage: Stage) -> float:
    """Of a token's backward through the stage: four for each weight, and in an output, whose forward comes with it, six."""
    return multiplications(stage) * (6 if is_output(stage) else 4)


def is_output(stage: Stage) -> bool:
    """Whether it is the one that judges targets."""
    return stage.kind in ("output", "adaptive")


def _rows(parameter: Parameter, model: ModelConfig, tokens: int, micro_batches: int) -> float:
    """That travel: all of them, or those that a window is expected to touch."""
    rows = parameter.shape[0]
    if parameter.looked_up is None:
        return rows
    if parameter.looked_up == "output":
        # Ranks at the same micro-batch draw the same words; no more are counted than there are.
        return min(rows, distinct_words(rows, tokens) + model.sampled_words * micro_batches)
    return distinct_words(rows, tokens)


@lru_cache(maxsize=1024)
def distinct_words(vocabulary: int, tokens: int, first: int = 0, stop: int | None = None) -> float:
    """How many different words, of those from `first` on and before `stop`, `tokens` of a text are expected to have, words being
    log-uniform (see model.candidates)."""
    word = np.arange(first, vocabulary if stop is None else stop, dtype=np.float64)
    probability = np.log1p(1 / (word + 1)) / math.log(vocabulary + 1)
    return float(-np.expm1(tokens * np.log1p(-probability)).sum())
