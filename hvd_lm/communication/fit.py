"""Fits of times by sums of terms that cannot be negative, and means, which single outliers do not move far."""

from __future__ import annotations

from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

_ROUNDS = 50
_HUBER = 1.345
"""In robust standard deviations: 95 % efficient for normal errors (Huber 1981, "Robust Statistics")."""
_DEVIATION_OF_MEDIAN = 1.4826
"""Of normal errors: standard deviation over median absolute deviation."""
_LEAST_DEVIATION = 1e-6
_OFF = 0.1
"""Of repeats, at each end."""


class Fit(NamedTuple):
    """``seconds = terms @ coefficients``."""

    coefficients: Values
    error: float
    """Median of abs(fitted / measured - 1)."""


def fit(terms: Values, seconds: Values) -> Fit:
    """The coefficients, none below 0, by which `terms` [P, C] make `seconds` [P], in relative error.

    Huber's weights, by iteratively reweighted least squares: a point that the machine was busy at counts less.
    """
    relative = terms / seconds[:, None]
    weights = np.ones(len(seconds))
    found = np.zeros(terms.shape[1])
    for _ in range(_ROUNDS):
        root = np.sqrt(weights)
        before, found = found, _least_squares(relative * root[:, None], root)
        errors = np.abs(relative @ found - 1)
        limit = _HUBER * max(_LEAST_DEVIATION, _DEVIATION_OF_MEDIAN * float(np.median(errors)))
        weights = limit / np.maximum(errors, limit)
        if np.allclose(found, before, rtol=1e-9, atol=0):
            break
    return Fit(found, float(np.median(np.abs(relative @ found - 1))))


def _least_squares(terms: Values, values: Values) -> Values:
    """With coefficients that are not negative: of the few sets of terms that may be above 0, the best one."""
    count = terms.shape[1]
    scale = np.linalg.norm(terms, axis=0)
    scale[scale == 0] = 1
    best, least = np.zeros(count), float(values @ values)
    for size in range(1, count + 1):
        for chosen in combinations(range(count), size):
            columns = list(chosen)
            part, *_ = np.linalg.lstsq(terms[:, columns] / scale[columns], values, rcond=None)
            residual = float(((terms[:, columns] / scale[columns] @ part - values) ** 2).sum())
            if (part >= 0).all() and residual < least:
                best = np.zeros(count)
                best[columns], least = part / scale[columns], residual
    return best


def middle_mean(repeats: Values) -> Values:
    """Of each column of `repeats` [R, C] the mean without the lowest and the highest tenth, [C]."""
    ordered, off = np.sort(repeats, axis=0), int(_OFF * len(repeats))
    mean: Values = ordered[off : len(ordered) - off].mean(axis=0)
    return mean
