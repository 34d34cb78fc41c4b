"""Where a run tells what it does."""

from __future__ import annotations

from dataclasses import dataclass, field

from hvd_lm.checkpoint import CheckpointWriter
from hvd_lm.training.metrics import Metrics, SilentMetrics


@dataclass
class Outlets:
    """Where a leg tells what it does; only rank 0 has any."""

    metrics: Metrics = field(default_factory=SilentMetrics)
    writer: CheckpointWriter | None = None
