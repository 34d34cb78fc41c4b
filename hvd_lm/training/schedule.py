"""The learning rate as a function of the optimizer step."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from hvd_lm.config import OptimizerConfig


@dataclass
class Schedule:
    """Where a run is in its schedule, which ends when the run does: with more or fewer workers it takes fewer or more steps for the
    rest of it."""

    step: float
    """How much of it is done, in steps of the workers that began."""
    steps: float
    """The whole of it."""
    factor: float = 1.0
    """On the rate of --decay plateau, for the validations that were no better than the best before them."""

    def coming(self, steps_left: int) -> float:
        """Which step of it the next one is, of so many that the run will make."""
        return self.step + (self.steps - self.step) / steps_left

    def plateau(self, config: OptimizerConfig) -> None:
        """A validation was no better."""
        if config.decay == "plateau":
            self.factor *= config.decay_factor


def begun(earlier: Schedule | None, step: int, total_steps: int, *, is_of_same_length: bool) -> Schedule:
    """That of a run after `step` of `total_steps`: where the run that it goes on with was in its own, of the same length or not."""
    if earlier is None:
        return Schedule(step, total_steps)
    return replace(earlier, steps=earlier.steps if is_of_same_length else earlier.step + total_steps - step)


def peak_learning_rate(config: OptimizerConfig, sequences_per_step: int) -> float:
    """The learning rate scaled to `sequences_per_step` (data ranks x batch size x backward passes per step)."""
    ratio = sequences_per_step / config.base_batch_size
    factor = {"none": 1.0, "linear": ratio, "sqrt": math.sqrt(ratio)}[config.learning_rate_scaling]
    return config.learning_rate * factor


def learning_rate(config: OptimizerConfig, schedule: Schedule, *, step: float, epoch: int, sequences_per_step: int) -> float:
    """Rate of step `step` (the first is 1) of the `schedule`, in `epoch` (the first is 0): linear warm-up, times the decay."""
    peak = peak_learning_rate(config, sequences_per_step)
    if step <= config.warmup_steps:
        peak = peak * step / config.warmup_steps
    # The first step after the warm-up runs at the peak, the last step at the final rate.
    progress = (step - config.warmup_steps - 1) / max(1, schedule.steps - config.warmup_steps - 1)
    progress = max(0.0, min(progress, 1.0))
    final = config.final_learning_rate_fraction
    fraction = {
        "constant": 1.0,
        "linear": 1.0 - (1.0 - final) * progress,
        "cosine": final + (1.0 - final) * (1.0 + math.cos(math.pi * progress)) / 2.0,
        "exponential": math.pow(final, progress),
        "step": math.pow(config.decay_factor, max(0, epoch + 1 - config.decay_start_epochs)),
        "milestones": math.pow(config.decay_factor, sum(epoch >= at for at in config.decay_milestones)),
        "plateau": schedule.factor,
    }[config.decay]
    return peak * fraction
