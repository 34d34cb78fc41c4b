"""Which rows of the parameters a rank holds: of all of them, or a part, where the ranks of a group divide them.

    none         every rank holds everything
    layers       a rank of a model group holds all rows of its stages, none of others; both ends have the table of a tied embedding
    optimizer    every rank holds all weights, and the moments of consecutive rows of each
    vocabulary   the ranks of a model group hold consecutive rows of what is split by rows each; the first ones have one more

Rows are those of the canonical parameter, whoever holds them: files and messages know nothing of a split.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from hvd_lm.config import ModelConfig
from hvd_lm.errors import ConfigError
from hvd_lm.job.topology import GroupName, Topology
from hvd_lm.model.parameters import Parameter
from hvd_lm.model.pipeline import stages_of_ranks
from hvd_lm.model.stages import parameters, stages

BLOCK = 1 << 22
"""Values that are read, summed or written at a time (16 MiB)."""
BROADCAST = 1 << 19
"""Values that one broadcast has (2 MiB). Ranks far down its tree wait for all above them, and Gloo gives up after 30 seconds: four
hosts on 10 Mbit/s lost each other in 16 MiB. A sum passes in pieces by itself."""
EXCHANGED = 1 << 21
"""Values that one rank gets from all others, or gives them, at a time (8 MiB), as they all pass through its own link."""
SUMMED_VALUES = 1 << 19
"""Values that are sent at a time where a rank gets a part of a sum (2 MiB)."""
ON_THE_WAY = 4
"""Sendings of such that a rank does not wait for."""


@dataclass(frozen=True)
class Share:
    """What a rank holds of a parameter, and what the others do."""

    parameter: Parameter
    held_by: GroupName
    """The ranks that hold the same rows as this one."""
    divided_over: GroupName | None
    """The ranks that hold all rows together; None if each of them does."""
    parts: tuple[range, ...]
    """Rows of each rank of that group, ascending; one part if nothing is divided."""
    place: int
    """Of this rank in the group."""

    @property
    def counts(self) -> bool:
        """Whether this rank is the first of the group with these rows, so that a norm counts them once."""
        return self.parts.index(self.rows) == self.place

    @property
    def rows(self) -> range:
        """Of this rank."""
        return self.parts[self.place]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what this rank holds."""
        return (len(self.rows), *self.parameter.shape[1:])


def shares(model: ModelConfig, topology: Topology) -> dict[str, Share]:
    """Name -> what this rank holds of each parameter. Raises ConfigError if a rank would hold nothing."""
    if topology.split == "layers":
        return _of_layers(model, topology)
    if topology.split == "vocabulary" and model.classes:
        raise ConfigError(
            "a model that tells classes apart has no vocabulary to divide in its output: train with --split optimizer"
        )
    if topology.split == "vocabulary" and model.softmax == "adaptive":
        raise ConfigError(
            "the clusters of --softmax adaptive are not divided over model ranks: train with --split layers or optimizer, or with "
            "another --softmax; evaluate with --model-parallel 1"
        )
    found = {}
    for name, parameter in parameters(model).items():
        count = parameter.shape[0]
        if topology.split == "vocabulary" and parameter.split == "rows":
            if topology.model_size > count:
                raise ConfigError(
                    f"--model-parallel {topology.model_size} cannot divide a vocabulary of {count} words: take fewer model ranks"
                )
            found[name] = Share(parameter, "data", "model", divide(count, topology.model_size), topology.model_rank)
        else:
            found[name] = whole(parameter)
    return found


def _of_layers(model: ModelConfig, topology: Topology) -> dict[str, Share]:
    declared, of_ranks = stages(model), stages_of_ranks(model, topology.model_size)
    found = {}
    for name, parameter in parameters(model).items():
        holders = {
            rank
            for rank, places in enumerate(of_ranks)
            for place in places
            if any(parameter.name == name for parameter in declared[place].parameters.values())
        }
        parts = tuple(range(parameter.shape[0] if rank in holders else 0) for rank in range(topology.model_size))
        held_by: GroupName = "ends" if len(holders) > 1 and topology.model_rank in holders else "data"
        found[name] = Share(parameter, held_by, "model", parts, topology.model_rank)
    return found


def moment_shares(model: ModelConfig, topology: Topology) -> dict[str, Share]:
    """As `shares`, of the moments of each parameter.

    A split optimizer leaves those of a looked-up parameter whole: of its gradient a few rows travel, but the update changes all of
    them, and all would have to travel back.
    """
    found = shares(model, topology)
    if topology.split != "optimizer":
        return found
    for name, parameter in parameters(model).items():
        if not parameter.looked_up and parameter.shape[0] >= topology.data_size > 1:
            # A model group is the rank alone here: nobody else holds these rows.
            parts = divide(parameter.shape[0], topology.data_size)
            found[name] = Share(parameter, "model", "data", parts, topology.data_rank)
    return found


def whole(parameter: Parameter) -> Share:
    """Every rank holds it."""
    return Share(parameter, "readers", None, (range(parameter.shape[0]),), 0)


def divide(count: int, parts: int) -> tuple[range, ...]:
    """``range(count)`` in consecutive parts, as equal as can be; the first ones have one more."""
    share, longer = divmod(count, parts)
    stops = [place * share + min(place, longer) for place in range(parts + 1)]
    return tuple(map(range, stops[:-1], stops[1:]))


def blocks(rows: range, shape: tuple[int, ...], values: int | None = None) -> Iterator[range]:
    """`rows` of something of this shape in pieces of about so many `values`; of `BLOCK` unless given."""
    step = max(1, (values or BLOCK) // max(1, math.prod(shape[1:])))
    for start in range(rows.start, rows.stop, step):
        yield range(start, min(start + step, rows.stop))


def rounds(share: Share, values: int | None = None) -> Iterator[list[range]]:
    """A block of each part at a time, of about so many `values`; unless given of `EXCHANGED`, all parts together.

    An empty one where a part has no more.
    """
    of_parts = [list(blocks(part, share.shape, values or EXCHANGED // len(share.parts))) for part in share.parts]
    for round_ in range(max(map(len, of_parts))):
        yield [part[round_] if round_ < len(part) else range(0) for part in of_parts]
