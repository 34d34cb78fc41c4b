"""Dynamic loss scaling for fp16 gradients on the wire (Micikevicius et al. 2018, arXiv:1710.03740, section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass

from hvd_lm.errors import TrainingError

INITIAL = 8192.0
"""Unless --loss-scale says otherwise."""
LARGEST = 2.0**24
SMALLEST = 2.0**-24


@dataclass
class LossScale:
    """A factor on the loss that halves at an overflow and doubles after `growth_steps` steps without one.

    Every rank sees the same reduced gradients, so every rank keeps the same scale without talking about it.
    """

    scale: float
    growth_steps: int
    good_steps: int = 0
    skipped_steps: int = 0
    """Steps not applied because a gradient overflowed."""

    def update(self, overflow: bool) -> None:
        """Take note of one optimizer step.

        Raises TrainingError once the gradient overflows at the smallest scale too; then nothing has changed.
        """
        if not overflow:
            self.good_steps += 1
            if self.good_steps >= self.growth_steps:
                self.scale, self.good_steps = min(self.scale * 2, LARGEST), 0
            return
        if self.scale / 2 < SMALLEST:
            raise TrainingError(
                f"the gradient is not finite at any loss scale ({self.skipped_steps + 1} steps skipped): "
                "lower --learning-rate, or train with --compression none"
            )
        self.skipped_steps += 1
        self.good_steps = 0
        self.scale /= 2
