"""Dynamic evaluation: the model goes on learning from the text that it is judged by, after each part of it was predicted.

Krause et al. 2018, arXiv:1709.07432. With g the gradient of the mean loss of a segment, W0 the weights before the text:

    sgd   W += decay * (W0 - W) - rate * g                                               (section 3)
    rms   W += decay * R / mean(R) * (W0 - W) - rate * g / (R + epsilon)                 (equations 7 and 8)

R is the root mean square of gradients on the training text. Adam's second moments in the checkpoint are that, up to a factor:
its gradients are means over the sequences of a window, whose mean square is smaller by their number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from hvd_lm.adapters.base import Adapter
from hvd_lm.checkpoint import Checkpoint
from hvd_lm.config import OptimizerConfig
from hvd_lm.data.streams import Streams, Tokens
from hvd_lm.errors import CheckpointError, require
from hvd_lm.model.weights import Array

_DEFAULT_RATE = {"sgd": 0.03, "rms": 0.0005}


@dataclass(frozen=True)
class DynamicConfig:
    """Dynamic evaluation: predict a segment, then learn from it."""

    dynamic: Literal["none", "sgd", "rms"] = "none"
    """Go on learning while evaluating (Krause et al. 2018, arXiv:1709.07432), with plain gradients or gradients divided by their
    root mean square while training (needs a checkpoint of Adam). Reads the text in one stream, on one rank."""
    dynamic_rate: float | None = None
    """Learning rate of dynamic evaluation. Unless given: 0.03 for sgd, 0.0005 for rms."""
    dynamic_decay: float = 0.02
    """Share of the way back to the trained weights after each segment."""
    dynamic_segment: int = 5
    """Tokens that are predicted before the model learns from them."""
    dynamic_epsilon: float = 0.001
    """rms: added to the root mean square."""

    def __post_init__(self) -> None:
        require(self.dynamic_rate is None or self.dynamic_rate > 0, f"--dynamic-rate must be above 0, not {self.dynamic_rate}")
        require(0 <= self.dynamic_decay < 1, f"--dynamic-decay must be in [0, 1), not {self.dynamic_decay}")
        require(self.dynamic_segment >= 1, f"--dynamic-segment must be at least 1, not {self.dynamic_segment}")
        require(self.dynamic_epsilon > 0, f"--dynamic-epsilon must be above 0, not {self.dynamic_epsilon}")


def evaluate_dynamically(
    adapter: Adapter, checkpoint: Checkpoint, tokens: Tokens, first_input: int, config: DynamicConfig
) -> float:
    """Sum of the cross-entropy (nats) of `tokens`, each predicted before it was learnt from.

    Raises CheckpointError if the checkpoint lacks the moments that rms needs.
    """
    rates, decays = step_sizes(checkpoint, config)
    # Plain SGD has no moments; the step sizes are our own.
    adapter.build(checkpoint.model.without_noise(), OptimizerConfig(optimizer="sgd"))
    adapter.load_weights(checkpoint.weights)
    adapter.begin_dynamic_evaluation(rates, decays)
    streams = Streams(tokens, first_input=first_input, batch_size=1, sequence_length=config.dynamic_segment)
    state = adapter.zero_state(1)
    total = 0.0
    for index in range(streams.micro_batches):
        segment = streams.micro_batch(index)
        weight = 1 / streams.target_count(index, index + 1)
        state = adapter.accumulate(segment.inputs_TB, segment.targets_TB, state, weight=weight, last=True)
        total += adapter.dynamic_step()
    return total


def step_sizes(checkpoint: Checkpoint, config: DynamicConfig) -> tuple[Mapping[str, Array], Mapping[str, Array]]:
    """Learning rate and decay of every weight, ``[]`` or of the weight's shape."""
    rate = np.float32(config.dynamic_rate or _DEFAULT_RATE[config.dynamic])
    decay = np.float32(config.dynamic_decay)
    if config.dynamic == "sgd":
        return dict.fromkeys(checkpoint.weights, np.asarray(rate)), dict.fromkeys(checkpoint.weights, np.asarray(decay))
    rms = _root_mean_squares(checkpoint)
    mean = sum(float(values.sum(dtype=np.float64)) for values in rms.values()) / sum(values.size for values in rms.values())
    rates = {name: rate / (values + np.float32(config.dynamic_epsilon)) for name, values in rms.items()}
    # A decay above 1 would overshoot the trained weights.
    decays = {name: np.minimum(decay * values / np.float32(mean), np.float32(1)) for name, values in rms.items()}
    return rates, decays


def _root_mean_squares(checkpoint: Checkpoint) -> dict[str, Array]:
    state, optimizer = checkpoint.optimizer_state, checkpoint.optimizer
    moments = {name.removeprefix("second/"): m for name, m in state.moments.items() if name.startswith("second/")}
    if not moments or not state.applied_steps:
        raise CheckpointError("--dynamic rms needs the moments of a model that was trained with Adam: use --dynamic sgd")
    correction = 1 - optimizer.beta2**state.applied_steps
    return {name: np.sqrt(moment * np.float32(_sequences_per_step(checkpoint) / correction)) for name, moment in moments.items()}


def _sequences_per_step(checkpoint: Checkpoint) -> int:
    settings = checkpoint.progress.settings or {}
    passes = settings.get("communication", {}).get("backward_passes_per_step", 1)
    return int(passes) * checkpoint.progress.position.streams
