"""Where a run tells what it does."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from hvd_lm.checkpoint import CheckpointWriter
from hvd_lm.training.metrics import Metrics, SilentMetrics


@dataclass
class Outlets:
    """Where a leg tells what it does; only rank 0 has any."""

    metrics: Metrics = field(default_factory=SilentMetrics)
    writer: CheckpointWriter | None = None

    def release_checkpoint(self) -> float:
        """Before the weights change; seconds that it took to have them copied."""
        began = time.perf_counter()
        if self.writer:
            self.writer.release()
        return time.perf_counter() - began
