"""Curves of many steps, made readable: means over neighbours, and over groups."""

from __future__ import annotations

import numpy as np

from hvd_lm.report.runs import Values

MANY_STEPS = 100
"""From here on a curve is smoothed."""


def smoothing_window(steps: int, smoothing: int | None) -> int:
    """Over how many steps a curve of `steps` is averaged."""
    if smoothing is None:
        return steps // 40 if steps > MANY_STEPS else 1
    return smoothing


def smoothed(values: Values, window: int) -> Values:
    """Centred mean over `window` steps (made odd), over those that there are; NaN stays NaN."""
    there = np.isfinite(values)
    kernel = np.ones(min(window, len(values)) // 2 * 2 + 1)
    # The kernel may be one longer than the values: `full`, cut to their middle.
    half = len(kernel) // 2
    sums = np.convolve(np.where(there, values, 0.0), kernel)[half : half + len(values)]
    counts = np.convolve(there, kernel)[half : half + len(values)]
    return np.where(there, sums / np.maximum(counts, 1.0), np.nan)


def group_means(values: Values, group: int) -> Values:
    """Means of `group` values, one group after the other, over those that there are."""
    if group == 1:
        return values
    padded = np.pad(values, (0, -len(values) % group), constant_values=np.nan).reshape(-1, group)
    counts = np.isfinite(padded).sum(axis=1)
    return np.where(counts > 0, np.nansum(padded, axis=1) / np.maximum(counts, 1), np.nan)
