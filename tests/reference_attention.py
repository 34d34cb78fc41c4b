"""The judge of attention to a source: NumPy, float64, forward and gradients by hand, one sequence after the other.

Shapes: T time, B sequences, H units.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def forward(w: Mapping[str, Array], x_TBH: Array, inputs_TB: NDArray[np.int32], source_end: int) -> tuple[Array, Any]:
    """What a token attends to is the source, the tokens up to the first `source_end`, as far as it has been read."""
    outputs, tape = np.zeros_like(x_TBH), []
    for b in range(x_TBH.shape[1]):
        x_TH = x_TBH[:, b]
        ends = np.flatnonzero(inputs_TB[:, b] == source_end)
        source = int(ends[0]) + 1 if len(ends) else len(x_TH)
        for t in range(len(x_TH)):
            memory_SH = x_TH[: min(source, t + 1)]
            scores_S = memory_SH @ (w["attention.query_kernel"] @ x_TH[t])
            weights_S = np.exp(scores_S - scores_S.max())
            weights_S /= weights_S.sum()
            joined = np.concatenate([weights_S @ memory_SH, x_TH[t]])
            outputs[t, b] = np.tanh(w["attention.output_kernel"] @ joined)
            tape.append((b, t, weights_S, joined))
    return outputs, (x_TBH, outputs, tape)


def backward(w: Mapping[str, Array], taped: Any, d_TBH: Array, gradients: Mapping[str, Array]) -> Array:
    """By what came in; adds to `gradients`."""
    x_TBH, outputs, tape = taped
    d_x = np.zeros_like(x_TBH)
    width = x_TBH.shape[2]
    for b, t, weights_S, joined in tape:
        memory_SH, query_H = x_TBH[: len(weights_S), b], w["attention.query_kernel"] @ x_TBH[t, b]
        d_before = d_TBH[t, b] * (1 - outputs[t, b] ** 2)
        gradients["attention.output_kernel"][...] += np.outer(d_before, joined)
        d_joined = d_before @ w["attention.output_kernel"]
        d_context, d_own = d_joined[:width], d_joined[width:]
        d_weights = memory_SH @ d_context
        d_scores = weights_S * (d_weights - weights_S @ d_weights)
        d_query = d_scores @ memory_SH
        d_x[: len(weights_S), b] += np.outer(weights_S, d_context) + np.outer(d_scores, query_H)
        gradients["attention.query_kernel"][...] += np.outer(d_query, x_TBH[t, b])
        d_x[t, b] += d_own + d_query @ w["attention.query_kernel"]
    return d_x
