"""The learning rate as a function of the optimizer step."""

from __future__ import annotations

import math

from hvd_lm.config import OptimizerConfig


def peak_learning_rate(config: OptimizerConfig, sequences_per_step: int) -> float:
    """The learning rate scaled to `sequences_per_step` (data ranks x batch size x backward passes per step)."""
    ratio = sequences_per_step / config.base_batch_size
    factor = {"none": 1.0, "linear": ratio, "sqrt": math.sqrt(ratio)}[config.learning_rate_scaling]
    return config.learning_rate * factor


def learning_rate(config: OptimizerConfig, *, step: int, total_steps: int, sequences_per_step: int) -> float:
    """Rate of optimizer step `step` (the first is 1) of `total_steps`: linear warm-up, then the decay."""
    peak = peak_learning_rate(config, sequences_per_step)
    if step <= config.warmup_steps:
        return peak * step / config.warmup_steps
    # The first step after the warm-up runs at the peak, the last step at the final rate.
    progress = (step - config.warmup_steps - 1) / max(1, total_steps - config.warmup_steps - 1)
    progress = min(progress, 1.0)
    final = config.final_learning_rate_fraction
    fraction = {
        "constant": 1.0,
        "linear": 1.0 - (1.0 - final) * progress,
        "cosine": final + (1.0 - final) * (1.0 + math.cos(math.pi * progress)) / 2.0,
        "exponential": math.pow(final, progress),
    }[config.decay]
    return peak * fraction
