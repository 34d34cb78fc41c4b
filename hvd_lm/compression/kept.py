"""What ranks remember of their gradients between steps, and how it is divided anew for another number of ranks.

kept/<name>       what a rank has not sent of a gradient yet: of R ranks of a parameter [m, n], one below the other, [R * m, n]
velocity/<name>   with the momentum of a selector (hvd_lm.compression.selectors): of R ranks, likewise
last/<name>       the sum of the last step's second messages (hvd_lm.compression.compressors), the same on all ranks
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import numpy as np

from hvd_lm.compression.compressors import Compression
from hvd_lm.compression.selectors import Selector
from hvd_lm.errors import ConfigError
from hvd_lm.job.topology import Topology
from hvd_lm.model.parameters import Parameter
from hvd_lm.model.split import Share, whole
from hvd_lm.model.weights import Array, Rows

KEPT, VELOCITY, LAST = "kept", "velocity", "last"
OF_A_RANK = (KEPT, VELOCITY)
"""Each rank has its own."""

Firsts: TypeAlias = Mapping[str, Array | None]
"""Name of each parameter whose gradient is compressed -> `last` of the first step; None with a selector, which has none."""


def firsts(compression: Compression | None, shares: Mapping[str, Share], topology: Topology) -> dict[str, Array | None]:
    """Of the parameters whose gradients are compressed: none where no other rank has a part.

    Raises ConfigError if ranks divide parameters or moments.
    """
    if compression is None:
        return {}
    if topology.split:
        raise ConfigError("a compressor works on whole gradients: use it without --model-parallel and --split")
    if topology.size == 1:
        return {}
    shapes = {name: share.parameter.shape for name, share in shares.items()}
    if isinstance(compression, Selector):
        return {name: None for name, shape in shapes.items() if compression.count(name, shape, 0)}
    of_all = {name: compression.first(name, shape) for name, shape in shapes.items()}
    return {name: np.asarray(first, np.float32) for name, first in of_all.items() if first is not None}


def remembered(
    compression: Compression | None, firsts: Firsts, shares: Mapping[str, Share], topology: Topology
) -> dict[str, Share]:
    """What this rank holds of all that is remembered, by the names of a checkpoint."""
    found = {}
    kinds = OF_A_RANK if isinstance(compression, Selector) and compression.momentum else (KEPT,)
    for name, first in firsts.items():
        rows, *rest = shares[name].parameter.shape
        parts = tuple(range(rank * rows, (rank + 1) * rows) for rank in range(topology.size))
        for kind in kinds:
            of_all = Parameter(f"{kind}/{name}", (topology.size * rows, *rest), 0.0, ())
            # Nobody else holds these rows: a model group is the rank alone here.
            found[of_all.name] = Share(of_all, "model", "readers", parts, topology.rank)
        if first is not None:
            found[f"{LAST}/{name}"] = whole(Parameter(f"{LAST}/{name}", first.shape, 0.0, ()))
    return found


@dataclass(frozen=True)
class Spread:
    """What R ranks keep of a parameter of `rows` rows, from what others have kept: all get an equal part of the sum.

    The sum of what all have stays as it was. Zeros if nobody has kept anything.
    """

    shape: tuple[int, ...]
    rows: int
    earlier: Rows | None

    dtype: ClassVar[np.dtype[np.float32]] = np.dtype(np.float32)

    def __getitem__(self, wanted: slice) -> Array:
        """Rows of one rank."""
        start, stop, _ = wanted.indices(self.shape[0])
        if self.earlier is None:
            return np.zeros((stop - start, *self.shape[1:]), np.float32)
        if self.earlier.shape == self.shape:
            return self.earlier[start:stop]
        first, ranks = start % self.rows, self.shape[0] // self.rows
        total = np.zeros((stop - start, *self.shape[1:]), np.float32)
        for begin in range(first, self.earlier.shape[0], self.rows):
            total += self.earlier[begin : begin + stop - start]
        return total / np.float32(ranks)


def fitted(
    earlier: Mapping[str, Rows], remembered: Mapping[str, Share], firsts: Firsts, shares: Mapping[str, Share]
) -> dict[str, Rows]:
    """What a run that goes on remembers, from what a checkpoint has: what does not fit this compressor begins anew."""
    found: dict[str, Rows] = {}
    for name, share in remembered.items():
        kind, _, parameter = name.partition("/")
        has, first = earlier.get(name), firsts[parameter]
        if kind in OF_A_RANK:
            found[name] = Spread(share.parameter.shape, shares[parameter].parameter.shape[0], has)
        else:
            assert first is not None
            found[name] = has if has is not None and has.shape == share.parameter.shape else first
    return found


def is_remembered(name: str, shape: tuple[int, ...], parameter: tuple[int, ...]) -> bool:
    """Whether something of this name and shape may be remembered of a parameter of that shape."""
    kind = name.partition("/")[0]
    if kind in OF_A_RANK:
        return len(shape) == len(parameter) and shape[1:] == parameter[1:] and shape[0] % parameter[0] == 0 < shape[0]
    return kind == LAST and math.prod(shape) <= math.prod(parameter)
