"""Seconds by which all ranks decide alike: those of the slowest of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hvd_lm.adapters.job import Job


def of_slowest(job: Job, *seconds: float) -> NDArray[np.float64]:
    """Of each of these the largest of all ranks, [C]. Collective."""
    slowest: NDArray[np.float64] = job.gather(np.array(seconds), "all").max(axis=0)
    return slowest
