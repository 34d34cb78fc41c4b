"""Where a run with averaged SGD is: what decides when the averages begin, and when they did."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Averaging:
    """Of a checkpoint (hvd_lm.training.averages)."""

    losses: tuple[float, ...] = ()
    """Of the validations so far, nats per token; none any more when averages have begun."""
    since: int | None = None
    """Updates that had been applied when they began; None before."""
