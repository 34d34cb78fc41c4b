"""The gradient noise scale: the batch, in tokens, up to which a larger one makes a step nearly as much better as it is larger.

McCandlish et al. 2018, "An Empirical Model of Large-Batch Training", arXiv:1812.06162, appendix A.1: gradients of two batches, of
b and of B tokens, have expected squared norms of |G|^2 + tr(S) / b and |G|^2 + tr(S) / B, where G is the gradient of all text and
S the covariance of that of a token. Of a window the first micro-batch of a rank is the one, all of it on all ranks the other:

    |G|^2 = (B |G_B|^2 - b |G_b|^2) / (B - b)        tr(S) = (|G_b|^2 - |G_B|^2) / (1 / b - 1 / B)        scale = tr(S) / |G|^2
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from hvd_lm.adapters.base import Adapter
from hvd_lm.data.sources import IGNORED

MEMORY = 0.9
"""Of what was seen before, in the means of both parts: a step alone says little, and their ratio less."""


def parts(small: float, large: float, small_squares: float, large_squares: float) -> tuple[float, float]:
    """|G|^2 and tr(S), neither of them biased, of batches of `small` and `large` tokens whose gradients have such squared norms."""
    signal = (large * large_squares - small * small_squares) / (large - small)
    noise = (small_squares - large_squares) / (1 / small - 1 / large)
    return signal, noise


class NoiseScale:
    """Of the windows of one leg; a leg begins its means anew."""

    def __init__(self, adapter: Adapter, every: int | None) -> None:
        """Of each `every`-th step; of none."""
        self._adapter, self._every = adapter, every
        self._own: NDArray[np.float64] | None = None
        """Of the first micro-batch: squared norm, targets, and that it is one; zeros of one that has none."""
        self._signal, self._noise = 0.0, 0.0

    def is_due(self, step: int) -> bool:
        """Whether `step` is one of those."""
        return self._every is not None and step % self._every == 0

    def note(self, targets_TB: NDArray[np.int32], weight: float) -> None:
        """The gradient of the window so far is `weight` times the sum over these targets."""
        squares = sum(float(np.vdot(gradient, gradient)) for gradient in self._adapter.gradients().values())
        count = np.count_nonzero(targets_TB != IGNORED)
        self._own = np.array([squares / (weight * count) ** 2, count, 1.0]) if count else np.zeros(3)

    def figures(self, target_count: int, norm: float) -> dict[str, float]:
        """For the metrics, where the window of so many targets of all ranks, whose gradient has this `norm`, was noted; nothing
        where that is no number yet. Collective there."""
        own, self._own = self._own, None
        if own is None:
            return {}
        squares, tokens, ranks = self._adapter.job.sum(own, "all").tolist()
        if not ranks or not math.isfinite(norm) or tokens / ranks >= target_count:
            return {}
        signal, noise = parts(tokens / ranks, target_count, squares / ranks, norm**2)
        self._signal = MEMORY * self._signal + (1 - MEMORY) * signal
        self._noise = MEMORY * self._noise + (1 - MEMORY) * noise
        return {"noise_scale": self._noise / self._signal} if self._signal > 0 and self._noise > 0 else {}
