"""Selectors: few values of a gradient travel, with their places; each rank chooses its own (Lin et al. 2018, "Deep Gradient
Compression", arXiv:1712.01887). NumPy is the judge; frameworks run the same lines on their own arrays.

Where compressors send two messages whose sums are of use, a selector sends one that says which values it has, and ranks get those
of all (an all-gather). Shapes: m rows and n columns of a parameter as it is declared, k values of each rank.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

from hvd_lm.compression.limits import require_topk

SAMPLE = 100
"""Of so many values about one is in the sample that a threshold is read from."""
SMALLEST_SAMPLE = 1 << 14
LONG = 1 << 13
"""Values from which on a vector is worth selecting from: the bias of an output layer is then most of what would travel."""
LARGEST = (1 << 31) - 1
"""Values of a parameter that places in int32 can tell."""


@runtime_checkable
class Selector(Protocol):
    """Arrays, and `xp`, are as a `Compressor`'s; ``where`` with one argument, ``take`` and ``argsort`` have one name too.

    For every rank w of R with gradient G_w, [m, n]; with --clip c, all that are selected from are clipped together to the norm
    c / sqrt(R) before (section 3.2):

        velocity_w = momentum * velocity_w + G_w
        kept_w     = kept_w + velocity_w                           without momentum: + G_w
        chosen_w   = select(kept_w, k)
        gradient   = sum over w of kept_w at chosen_w, else 0      is applied, on all ranks
        kept_w     = velocity_w = 0 at chosen_w                    masking (section 3.3)
    """

    @property
    def momentum(self) -> float:
        """In [0, 1)."""

    def count(self, name: str, shape: tuple[int, ...], step: int) -> int:
        """k after `step` optimizer steps, of a parameter of this name and shape, the same on all ranks; 0 for one that travels as
        it is, in all steps. TensorFlow makes a graph for each k: let there be few."""

    def select(self, xp: Any, kept: Any, count: int) -> Any:
        """Places in ``kept.ravel()``, all different, [count], of integers. Anything will do if `kept` is not finite."""


@dataclass(frozen=True)
class TopK:
    """The largest values of a matrix, or of a long vector, `share` of all.

    Over the first `start_steps` optimizer steps the share falls by four each quarter: 1/4, 1/16, 1/64, 1/256 (section 3.3), but not
    below `share`.
    """

    share: float
    momentum: float = 0.0
    start_steps: int = 0

    def __post_init__(self) -> None:
        require_topk(self.share, self.momentum, self.start_steps)

    def count(self, name: str, shape: tuple[int, ...], step: int) -> int:  # noqa: ARG002 - whatever the name
        """k = ceil(share * m * n); 0 of a vector that is not `LONG`, and of what would not be smaller as values and places."""
        size = math.prod(shape)
        if (len(shape) != 2 and size < LONG) or size > LARGEST or 2 * math.ceil(self.share * size) >= size:
            return 0
        return math.ceil(self.share_at(step) * size)

    def share_at(self, step: int) -> float:
        """After so many optimizer steps."""
        if step >= self.start_steps:
            return self.share
        return max(self.share, 0.25 ** (1 + 4 * step // self.start_steps))

    def select(self, xp: Any, kept: Any, count: int) -> Any:
        """As `largest`."""
        return largest(xp, kept, count)


class Sampling(NamedTuple):
    """Each `stride`-th of all values, `sampled` in all, of which the threshold is number `place`, counted from the largest."""

    stride: int
    sampled: int
    place: int


def sampling(size: int, columns: int, count: int) -> Sampling:
    """To find about `count` of `size` values in a matrix of so many columns."""
    stride = max(1, size // max(SMALLEST_SAMPLE, size // SAMPLE))
    while math.gcd(stride, columns) > 1:
        stride += 1
    sampled = -(-size // stride)
    expected = sampled * count / size
    # Three standard deviations more than expected: then the sample hardly ever misleads.
    return Sampling(stride, sampled, min(sampled, math.ceil(expected + 3 * math.sqrt(expected)) + 1))


def largest(xp: Any, matrix: Any, count: int) -> Any:
    """Places of the `count` values of `matrix`, [m, n] or [m], that are farthest from 0, in the order of their size.

    Exactly so many. A sample says which ones may be among them, so that few are sorted (the paper takes 0.1 to 1 % at random; here
    each s-th value, with s and n relatively prime, so that all columns come equally often). If it has misled, all are sorted.
    """
    sizes = xp.abs(xp.reshape(matrix, (-1,)))
    its = sampling(math.prod(matrix.shape), math.prod(matrix.shape[1:]), count)
    sample = sizes[:: its.stride]
    threshold = xp.take(sample, xp.argsort(sample)[its.sampled - its.place])
    reached = sizes >= threshold
    # Of what is no number nothing is reached.
    is_misled = xp.count_nonzero(reached) < count
    candidates = xp.where(reached | is_misled)[0]
    order = xp.argsort(-xp.take(sizes, candidates))
    return xp.take(candidates, order[:count])
