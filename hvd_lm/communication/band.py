"""How far off a link's fits may be: the same link at its best and at its worst, as far as its points are from what was fitted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from hvd_lm.communication.link import SMALL, Collective, Link, Point
from hvd_lm.communication.ring import Course, course

_LOWER, _UPPER = 0.1, 0.9
"""Quantiles of measured over fitted time."""


def bounds(link: Link) -> tuple[Link, Link]:
    """`link` with lower, and with upper, negotiation, alpha and beta.

    Negotiation and alpha move by a quantile of measured over fitted time of the operations of up to 4 KiB, beta by that of the
    larger ones; the lower quantile is at most 1, the upper one at least. So what grows with the steps of more ranks is as far off
    as small operations are, what grows with bytes as far as large ones. Compute has no residuals, and stays.
    """
    low = _moved(link, lambda ratios: min(1.0, _quantile(ratios, _LOWER)))
    return low, _moved(link, lambda ratios: max(1.0, _quantile(ratios, _UPPER)))


def _moved(link: Link, factor: Callable[[list[float]], float]) -> Link:
    collectives = []
    for its in link.collectives:
        small = factor([_ratio(link, its, point) for point in its.points if point.size <= SMALL])
        large = factor([_ratio(link, its, point) for point in its.points if point.size > SMALL])
        collectives.append(replace(its, alpha=its.alpha * small, beta=its.beta * large))
    of_sums = link.of("allreduce")
    negotiation = factor([_ratio(link, of_sums, point) for point in of_sums.points if point.size <= SMALL])
    return replace(link, negotiation_seconds=link.negotiation_seconds * negotiation, collectives=tuple(collectives))


def _ratio(link: Link, its: Collective, point: Point) -> float:
    fitted = link.negotiation_seconds + point.count * _course(its, link).seconds(point.size, its.alpha, its.beta)
    return point.seconds / fitted if fitted else 1.0


def _course(its: Collective, link: Link) -> Course:
    return course(its.name, link.ranks)  # type: ignore[arg-type]


def _quantile(ratios: list[float], quantile: float) -> float:
    return float(np.quantile(ratios, quantile)) if ratios else 1.0
