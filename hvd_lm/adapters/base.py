"""The contract of an adapter: everything that the framework-agnostic code may ask of a framework.

Arrays cross this border as NumPy, settings as floats. Only the LSTM state stays in the framework, as an opaque value. Who takes
part, and what ranks do together, is the job's (see hvd_lm.adapters.job).

Shapes: T time, B sequences of this rank, V vocabulary, H units of the last layer, U units of all layers side by side.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hvd_lm.adapters.job import Job
from hvd_lm.config import CommunicationConfig, ModelConfig, OptimizerConfig
from hvd_lm.model.weights import Array, Weights

INCOMPLETE = "{} needs an accumulate(..., last=True) before it: the window is not complete"

State: TypeAlias = Any
"""State (h, c of every layer) of the B sequences, in the framework's own tensors, detached from any graph."""


@dataclass(frozen=True)
class StepResult:
    """What an optimizer step tells; the same on all ranks of the data group."""

    loss_sum: float
    """Sum of the cross-entropy (nats) over the targets of the window, all data ranks."""
    gradient_norm: float
    """Global norm of the gradient, reduced and unscaled, before clipping."""
    applied: bool
    """False if the loss or the gradient was not finite, or a rank was in trouble: then weights and moments are unchanged."""
    ranks_in_trouble: int = 0
    """How many of them have something to tell (`Job.agree`)."""


@dataclass(frozen=True)
class Evaluated:
    """What a model says of a text."""

    losses_TB: Array
    """Cross-entropy (nats) of every target; 0 where it is ignored."""
    outputs_TBH: Array
    """Outputs of the last LSTM layer."""
    state: State
    """After the last token."""


@dataclass
class OptimizerState:
    """Canonical state of the optimizer."""

    applied_steps: int
    """Updates applied so far (t in Adam's bias correction)."""
    moments: dict[str, Array]
    """``<moment>/<weight name>`` -> array of the weight's shape; moments of Adam: first, second; of SGD: momentum."""


class Adapter(ABC):
    """One framework's side of a model: its stages, its update, and the reduction between them.

        adapter = hvd_lm.adapter("torch")
        adapter.build(model_config, optimizer_config)
        adapter.load_weights(initial_weights(model_config, seed=1))
        state = adapter.zero_state(batch_size)
        state = adapter.accumulate(inputs_TB, targets_TB, state, weight=1 / targets, last=True)
        result = adapter.step(learning_rate=1e-3, clip=1.0, unscale=1.0)

    Collective calls (marked so) must be made by all ranks of the data group alike.
    """

    framework: ClassVar[str]
    """Name as in --framework."""
    job_class: ClassVar[type[Job]]
    """How this framework joins a job."""

    model: ModelConfig

    def __init__(self, job: Job, communication: CommunicationConfig | None = None) -> None:
        """`communication` says how gradients travel; what Horovod reads of it when it starts is the job's."""
        self.job = job
        self.communication = communication or CommunicationConfig()

    @abstractmethod
    def build(self, model: ModelConfig, update: OptimizerConfig | None = None) -> None:
        """Make the model, on this rank alone; the weights are undefined until loaded.

        Without `update` it can only be read: there are no moments, and no `step`.
        """

    @abstractmethod
    def load_weights(self, weights: Mapping[str, Array]) -> None:
        """Set the canonical weights (hvd_lm.model.parameters). Raises CheckpointError if names or shapes do not fit."""

    @abstractmethod
    def weights(self, *, copy: bool = True) -> Weights:
        """The canonical weights. Without `copy` they may be the memory that the next `step` changes."""

    @abstractmethod
    def load_optimizer_state(self, state: OptimizerState) -> None:
        """Set the moments. Raises CheckpointError if names or shapes do not fit the optimizer."""

    @abstractmethod
    def optimizer_state(self, *, copy: bool = True) -> OptimizerState:
        """The moments. Without `copy` they may be the memory that the next `step` changes."""

    @abstractmethod
    def broadcast_state(self) -> None:
        """Weights, moments and step count of the first rank of the data group, on all its ranks. Collective."""

    @abstractmethod
    def zero_state(self, batch_size: int) -> State:
        """The state at the beginning of a text."""

    @abstractmethod
    def state_to_numpy(self, state: State) -> NDArray[np.float32]:
        """A copy of a state, ``float32 [2, B, U]``: h and c, all layers side by side from below."""

    @abstractmethod
    def state_from_numpy(self, state_2BU: NDArray[np.float32]) -> State:
        """The inverse of `state_to_numpy`."""

    @abstractmethod
    def accumulate(
        self,
        inputs_TB: NDArray[np.int32],
        targets_TB: NDArray[np.int32],
        state: State,
        *,
        weight: float,
        last: bool,
        defer: int = 0,
        dropout_masks: Sequence[NDArray[np.bool_]] = (),
    ) -> State:
        """Forward and backward of one micro-batch; adds ``weight * d(sum of cross-entropy)`` to the window's gradient.

        `defer`: for how many more micro-batches the backward waits. Those that have waited go backward together, layer by layer.
        With `last` each gradient then starts its reduction over the data group as soon as it is complete (collective). The loss
        travels too, and beside it whether this rank is in trouble (`job.trouble`).
        Targets of `streams.IGNORED` do not count. Returns the state after the last token.
        """

    @abstractmethod
    def step(self, *, learning_rate: float, clip: float | None, unscale: float) -> StepResult:
        """Finish the reduction, multiply the gradient by `unscale`, clip its global norm, apply it, begin a new window.

        A gradient is dropped instead of applied, on all ranks alike, if it or the loss is not finite, or if a rank is in trouble.
        Raises RuntimeError if the window has had no last micro-batch. Collective.
        """

    @abstractmethod
    def gradients(self) -> Weights:
        """A copy of the gradient of the window so far: reduced after a last micro-batch, this rank's own before."""

    @abstractmethod
    def begin_dynamic_evaluation(self, rates: Mapping[str, Array], decays: Mapping[str, Array]) -> None:
        """Remember the weights as those that `dynamic_step` pulls back to. Both map a weight's name to ``[]`` or its shape."""

    @abstractmethod
    def dynamic_step(self) -> float:
        """``weight += decay * (remembered weight - weight) - rate * gradient``, element by element, and a new window.

        The gradient is that of the window; returns its sum of cross-entropy (nats). Raises RuntimeError as `step` does.
        """

    @abstractmethod
    def evaluate(self, inputs_TB: NDArray[np.int32], targets_TB: NDArray[np.int32], state: State) -> Evaluated:
        """Cross-entropy of every target of this rank. No gradient, no dropout. Targets of `streams.IGNORED` do not count.

        Logits exist for a few hundred tokens at a time.
        """

    @abstractmethod
    def logits(self, inputs_TB: NDArray[np.int32], state: State) -> tuple[NDArray[np.float32], State]:
        """Logits ``float32 [T, B, V]`` and the state after. No gradient, no dropout."""

    @abstractmethod
    def next_logits(self, inputs_TB: NDArray[np.int32], state: State) -> tuple[NDArray[np.float32], State]:
        """Logits ``float32 [B, V]`` of the token after the last input, and the state after. No gradient, no dropout."""
