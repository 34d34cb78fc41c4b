"""Compressors: what travels in place of a gradient. NumPy is the judge; frameworks run the same lines on their own arrays.

A rank adds to its gradient what it has kept, and two small messages are summed over the ranks, one after the other. What it did
not send it keeps for the next step (error feedback, Seide et al. 2014; Karimireddy et al. 2019, arXiv:1901.09847).

Shapes: m rows and n columns of a parameter as it is declared, r the rank of an approximation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np

from hvd_lm.compression.limits import require_powersgd
from hvd_lm.compression.selectors import Selector, TopK
from hvd_lm.config import CommunicationConfig
from hvd_lm.model.parameters import key_of_name
from hvd_lm.model.weights import Array

DEPENDENT = 1e-5
"""A column of which so little is left beside the others is rounding, not a direction."""


class Compressor(Protocol):
    """Arrays are float32, of NumPy or of a framework; `xp` is the module whose functions they go with: numpy, torch, or
    tensorflow.experimental.numpy. What has one name in all three (``sum``, ``abs``, ``sign``, ``where``, ``swapaxes``,
    ``asarray`` ...) and the operators of Python are there to write one in.

    For every rank w with gradient G_w (to which what it has kept is added already):

        first_w         = compress(G_w, last)
        common, after_w = combine(G_w, sum of first_w)
        sent_w          = decompress(common, after_w)            rank w keeps G_w - sent_w
        gradient        = decompress(common, sum of after_w)     is applied, on all ranks
        last            = sum of after_w                         for the next step

    `decompress` is linear in its second argument, so that what is applied and what is kept make up the sum of the gradients.
    """

    @property
    def exact_steps(self) -> int:
        """So many optimizer steps at the beginning send gradients as they are."""

    def first(self, name: str, shape: tuple[int, ...]) -> Array | None:
        """`last` of the first step, of a parameter of this name and shape, the same on all ranks; None: it travels as it is."""

    def compress(self, xp: Any, gradient: Any, last: Any) -> Any:
        """The first message: any shape and number format that Horovod sums, but the same on all ranks."""

    def combine(self, xp: Any, gradient: Any, total: Any) -> tuple[Any, Any]:
        """From the sum of the first messages: what all ranks know now, with one row for each of the gradient; and the second
        message, of the shape of `first`."""

    def decompress(self, xp: Any, common: Any, message: Any) -> Any:
        """A gradient, row by row: of some rows of `common` those rows."""


@dataclass(frozen=True)
class PowerSGD:
    """Vogels et al. 2019 (arXiv:1905.13727, algorithm 1): a gradient as the product of two matrices of `rank` columns.

    One step of a power iteration that begins where the last one ended: P = G Q, P is made orthonormal, Q = G^T P. P and Q are
    linear in the gradients, so that the sum over ranks is what is approximated. With `halves` both travel as float16; what that
    rounds off Q is kept, too.
    """

    rank: int
    exact_steps: int = 0
    halves: bool = False

    def __post_init__(self) -> None:
        require_powersgd(self.rank, self.exact_steps)

    def compresses(self, shape: tuple[int, ...]) -> bool:
        """Whether a parameter has two dimensions, and is smaller as P and Q."""
        return len(shape) == 2 and self.rank * sum(shape) < math.prod(shape)

    def first(self, name: str, shape: tuple[int, ...]) -> Array | None:
        """Q, [n, r], normal, from the name alone; None of what is not compressed."""
        if not self.compresses(shape):
            return None
        generator = np.random.default_rng(key_of_name(f"powersgd/{name}"))
        return generator.standard_normal((shape[1], self.rank), np.float32)

    def compress(self, xp: Any, gradient: Any, last: Any) -> Any:
        """P, [m, r]. A column of zeros in `last` would stay one for ever: it begins anew, as ones."""
        is_zero = xp.sum(xp.abs(last), axis=0, keepdims=True) == 0
        columns = xp.where(is_zero, xp.ones_like(last), last)
        if not self.halves:
            return gradient @ columns
        # As long as Q was, squared: P is then of length 1 where a gradient is as the last one, whatever its size.
        largest = xp.amax(xp.abs(columns), axis=0, keepdims=True)
        columns = columns / largest
        return _half(xp, gradient @ (columns / (xp.sum(columns * columns, axis=0, keepdims=True) * largest)))

    def combine(self, xp: Any, gradient: Any, total: Any) -> tuple[Any, Any]:
        """P with orthonormal columns [m, r], and Q, [n, r]."""
        basis = orthonormal(xp, _single(xp, total))
        # What is transposed is small.
        message = xp.swapaxes(xp.swapaxes(basis, 0, 1) @ gradient, 0, 1)
        return basis, _half(xp, message) if self.halves else message

    def decompress(self, xp: Any, common: Any, message: Any) -> Any:
        """P Q^T, [m, n]."""
        return common @ xp.swapaxes(_single(xp, message), 0, 1)


def orthonormal(xp: Any, columns: Any) -> Any:
    """Columns of length 1 at right angles that span what `columns`, [m, r], do; zeros where one depends on those before it.

    Gram-Schmidt, each column twice, which is enough for float32 (Giraud et al. 2005, doi:10.1007/s00211-005-0615-4). What is not
    finite stays so.
    """
    found = None
    for place in range(columns.shape[1]):
        column = columns[:, place : place + 1]
        # To about 1 first: squares of small gradients would be no float32 any more.
        largest = xp.amax(xp.abs(column))
        column = column / xp.where(largest == 0, xp.ones_like(largest), largest)
        length = _length(xp, column)
        for _ in range(0 if found is None else 2):
            column = column - found @ (xp.swapaxes(found, 0, 1) @ column)
        left = _length(xp, column)
        is_rounding = left <= DEPENDENT * length
        column = xp.where(is_rounding, xp.zeros_like(column), column / xp.where(is_rounding, xp.ones_like(left), left))
        found = column if found is None else xp.concatenate([found, column], axis=1)
    return found


def _half(xp: Any, array: Any) -> Any:
    return xp.asarray(array, dtype=xp.float16)


def _single(xp: Any, array: Any) -> Any:
    return xp.asarray(array, dtype=xp.float32)


def _length(xp: Any, column: Any) -> Any:
    return xp.sqrt(xp.sum(column * column))


Compression: TypeAlias = Compressor | Selector
"""How gradients travel where they are not sent as they are: as messages that are summed, or that are gathered."""


def compression_of(communication: CommunicationConfig) -> Compression | None:
    """What the settings ask for; None where gradients travel as they are, or as halves."""
    if communication.compression == "powersgd":
        return PowerSGD(communication.powersgd_rank, communication.powersgd_start_steps, communication.powersgd_halves)
    if communication.compression == "topk":
        return TopK(communication.topk_share, communication.topk_momentum, communication.topk_start_steps)
    return None
