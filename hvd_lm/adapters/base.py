"""The contract of an adapter: everything that the framework-agnostic code may ask of a framework.

Arrays cross this border as NumPy, settings as floats. Only the LSTM state stays in the framework, as an opaque value. Who takes
part, and what ranks do together, is the job's (see hvd_lm.adapters.job).

Shapes: T time, B sequences of this rank, V vocabulary, H units of the last layer, U units of all layers side by side.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hvd_lm.adapters.job import Job
from hvd_lm.compression import kept
from hvd_lm.compression.compressors import Compression, compression_of
from hvd_lm.compression.selectors import Selector
from hvd_lm.config import CommunicationConfig, ModelConfig, OptimizerConfig
from hvd_lm.errors import CheckpointError, ConfigError
from hvd_lm.job.topology import GroupName
from hvd_lm.model.candidates import Candidates
from hvd_lm.model.pipeline import stages_of_ranks
from hvd_lm.model.split import Share, blocks, moment_shares, shares
from hvd_lm.model.stages import stages
from hvd_lm.model.weights import Array, Rows, Weights, check_weights

READ_ONLY = "the model was built without an update: it can only be read"
INCOMPLETE = "{} needs an accumulate(..., last=True) before it: the window is not complete"

State: TypeAlias = Any
"""State (h, c of every layer) of the B sequences, in the framework's own tensors, detached from any graph."""


@dataclass(frozen=True)
class StepResult:
    """What an optimizer step tells; the same on all ranks, but in a step of a rank's own (`CommunicationConfig.is_local`).

    There loss, norm and whether it was applied are the rank's, and so is all else in one that tells nothing (`Adapter.tells`).
    """

    loss_sum: float
    """Sum of the cross-entropy (nats) over the targets of the window, all ranks."""
    gradient_norm: float
    """Global norm of the gradient, reduced and unscaled, before clipping."""
    applied: bool
    """False if the loss or the gradient was not finite, or a rank was in trouble: then weights and moments are unchanged."""
    ranks_in_trouble: int = 0
    """How many of them have something to tell (`Job.agree`)."""
    ranks_to_end: int = 0
    """How many of them are to end here (`Job.stop`)."""
    ranks_beyond_halves: int = 0
    """How many of them had an activation that float16, as which it travelled, has no room for; then nothing was applied."""
    bytes_sent: int = 0
    """That this rank gave to sums of gradients, and to what says which rows of them there are."""
    waits: Mapping[str, float] = field(default_factory=dict)
    """`Waits.figures`."""
    step_seconds: float = 0.0
    """`Waits.step_seconds`."""


@dataclass(frozen=True)
class Applied:
    """What became of a gradient; the same on all ranks."""

    norm: float
    """Global, reduced and unscaled, before clipping."""
    applied: bool
    """As of a step."""


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
    moments: Mapping[str, Array]
    """``<moment>/<weight name>`` -> array of the weight's shape; moments of Adam: first, second; of SGD: momentum; of Adagrad:
    accumulator."""


class Adapter(ABC):
    """One framework's side of a model: its stages, its update, and the reduction between them.

        adapter = hvd_lm.adapter("torch")
        adapter.build(model_config, optimizer_config)
        adapter.load_weights(initial_weights(model_config, seed=1))
        state = adapter.zero_state(batch_size)
        state = adapter.accumulate(inputs_TB, targets_TB, state, weight=1 / targets, last=True)
        result = adapter.step(learning_rate=1e-3, clip=1.0, unscale=1.0)

    Collective calls (marked so) must be made by all ranks of the job alike.
    """

    framework: ClassVar[str]
    """Name as in --framework."""
    job_class: ClassVar[type[Job]]
    """How this framework joins a job."""

    model: ModelConfig
    shares: Mapping[str, Share]
    """Name of a parameter -> the rows of it that this rank holds."""
    moment_shares: Mapping[str, Share]
    """The same of its moments."""
    moments_held: Mapping[str, Share]
    """The same by the names of a checkpoint, ``<moment>/<weight name>``."""
    remembered: Mapping[str, Share]
    """What is remembered of gradients that are compressed (hvd_lm.compression.kept), by the names of a checkpoint."""
    held: Mapping[str, Share]
    """All that this rank holds, by the names of a checkpoint."""
    is_pipeline: bool
    """Whether the ranks of a model group pass activations on to each other."""
    places: range
    """Of the declared stages, those of this rank."""
    update_config: OptimizerConfig | None
    """None of a model that is only read."""

    def __init__(self, job: Job, communication: CommunicationConfig | None = None, compressor: Compression | None = None) -> None:
        """`communication` says how gradients travel; what Horovod reads of it when it starts is the job's.

        Raises ConfigError if there is a `compressor`, and it names another way.
        """
        self.job = job
        self.communication = communication or CommunicationConfig()
        says = self.communication
        others = (says.compression, says.reduction, says.gradient_predivide_factor, says.reduce_every, says.late_gradients)
        if compressor and others != ("none", "sum", 1, 1, False):
            raise ConfigError(
                "a compressor says how gradients travel: give it with --compression none and --reduction sum, and without "
                "--gradient-predivide-factor, --reduce-every and --late-gradients"
            )
        self.compressor = compressor or compression_of(self.communication)
        self.tells = True
        """Whether ranks tell each other of the step that is about to be made; they may be quiet in those of their own."""

    def communicate(self, communication: CommunicationConfig) -> None:
        """From the next `build` on gradients travel as `communication` says. What Horovod has read of it when it started stays."""
        self.communication, self.compressor = communication, compression_of(communication)

    def build(self, model: ModelConfig, update: OptimizerConfig | None = None) -> None:
        """Make what this rank holds of the model (`shares`), on this rank alone; the weights are undefined until loaded.

        Without `update` it can only be read: there are no moments, and no `step`. Raises ConfigError if the model cannot be split
        as the job is arranged, gradients of what is split cannot be compressed, or one is larger than Horovod can count.
        """
        self.model, self.update_config = model, update
        topology = self.job.topology
        self.is_pipeline = topology.split == "layers"
        self.places = range(len(stages(model)))
        if self.is_pipeline:
            self.places = stages_of_ranks(model, topology.model_size)[topology.model_rank]
        self.shares, self.moment_shares = shares(model, topology), moment_shares(model, topology)
        moments = update.moments if update else ()
        self.moments_held = {f"{moment}/{name}": share for moment in moments for name, share in self.moment_shares.items()}
        self.firsts = kept.firsts(self.compressor if update else None, self.shares, topology)
        self.remembered = kept.remembered(self.compressor, self.firsts, self.shares, topology)
        self.held = {**self.shares, **self.moments_held, **self.remembered}
        for share in self.shares.values() if update else ():
            self.job.holders(share)  # refuses gradients that Horovod cannot count, before any memory is taken
        self._make()

    @abstractmethod
    def _make(self) -> None:
        """The tensors of `shares`, the stages, and the update if there is to be one."""

    @property
    def selected(self) -> frozenset[str]:
        """Parameters of whose gradients values are selected, any values: nobody knows before in which rows."""
        return frozenset(self.firsts) if isinstance(self.compressor, Selector) else frozenset()

    @property
    def clip_of_a_rank(self) -> float:
        """Norm that what a rank selects from is clipped to: that with which R gradients at right angles add up to --clip."""
        clip = self.update_config.clip if self.update_config else None
        return math.inf if clip is None else clip / math.sqrt(self.job.topology.readers)

    def load_weights(self, weights: Mapping[str, Rows]) -> None:
        """Set the weights from the canonical ones (hvd_lm.model.parameters), of which only this rank's rows are read.

        Raises CheckpointError if names or shapes do not fit.
        """
        check_weights(weights, self.model)
        for name, share in self.shares.items():
            self._load(name, share, weights[name])

    def load_optimizer_state(self, state: OptimizerState) -> None:
        """Set the moments, of which only this rank's rows are read. Raises CheckpointError if they are not the optimizer's."""
        assert self.update_config is not None, READ_ONLY
        self.check_moments(state.moments)
        for name, moment in state.moments.items():
            self._load(name, self.held[name], moment)
        self.set_applied_steps(state.applied_steps)

    def check_moments(self, moments: Mapping[str, Rows]) -> None:
        """Raises CheckpointError if they are not those of the optimizer."""
        assert self.update_config is not None, READ_ONLY
        if set(moments) != self.moments_held.keys():
            raise CheckpointError(f"the optimizer state does not fit {self.update_config.optimizer}: it is of another optimizer")

    def load_memory(self, memory: Mapping[str, Rows]) -> None:
        """Set what is remembered of compressed gradients, from a checkpoint of any ranks; what does not fit begins anew."""
        for name, values in self.fitted(memory).items():
            self._load(name, self.held[name], values)

    def fitted(self, memory: Mapping[str, Rows]) -> dict[str, Rows]:
        """That of a checkpoint, as all ranks of this job have it (`kept.fitted`)."""
        return kept.fitted(memory, self.remembered, self.firsts, self.shares)

    def _load(self, name: str, share: Share, values: Rows) -> None:
        for rows in blocks(share.rows, share.shape):
            self.set_rows(name, rows.start, np.ascontiguousarray(values[rows.start : rows.stop]))

    @abstractmethod
    def set_rows(self, name: str, start: int, values: Array) -> None:
        """Set some of this rank's rows, `start` and following of what a checkpoint has by this name (`held`).

        All of them come, block after block, before they are used.
        """

    @abstractmethod
    def set_applied_steps(self, steps: int, averaged_since: int | None = None) -> None:
        """Of the optimizer state, after its moments were set; asgd: weights are averaged over the steps after so many."""

    @abstractmethod
    def weights(self, *, copy: bool = True) -> Weights:
        """This rank's rows of the canonical weights. Without `copy` they may be the memory that the next `step` changes."""

    @abstractmethod
    def optimizer_state(self, *, copy: bool = True) -> OptimizerState:
        """The moments, this rank's rows. Without `copy` they may be the memory that the next `step` changes."""

    @abstractmethod
    def memory(self, *, copy: bool = True) -> dict[str, Array]:
        """What is remembered of compressed gradients, this rank's rows. Without `copy` as of `weights`."""

    @abstractmethod
    def broadcast_state(self) -> None:
        """Give all ranks that hold the same rows those of the first among them; of all that they hold, and the step count too.
        Collective."""

    def average(self, held: Mapping[str, Array]) -> int:
        """Give all ranks the mean of what each holds by these names of a checkpoint; how many bytes a rank has sent.

        Of what nobody divides. Collective.
        """
        sent = 0
        for name, array in held.items():
            for rows in blocks(range(len(array)), array.shape):
                values = array[rows.start : rows.stop]
                sent += values.nbytes
                self.set_rows(name, rows.start, self.job.sum(values, "all") / np.float32(self.job.topology.size))
        return sent

    @property
    @abstractmethod
    def applied_steps(self) -> int:
        """Updates applied so far."""

    @abstractmethod
    def zero_state(self, batch_size: int) -> State:
        """The state at the beginning of a text."""

    @abstractmethod
    def select_state(self, state: State, sequences: Sequence[int]) -> State:
        """That of these sequences, in this order; one may come several times."""

    def state_to_numpy(self, state: State) -> NDArray[np.float32]:
        """A copy of a state, ``float32 [2, B, U]``: h and c, all layers side by side from below; of a layer that projects P of H
        columns are h, then zeros. Collective over a pipeline."""
        own_2BU = self._state_to_numpy(state)
        if not self.is_pipeline:
            return own_2BU
        return np.ascontiguousarray(self.job.concatenate(own_2BU.transpose(2, 0, 1), "model").transpose(1, 2, 0))

    def state_from_numpy(self, state_2BU: NDArray[np.float32]) -> State:
        """The inverse of `state_to_numpy`; of a pipeline, what this rank's layers carry."""
        units = [stage.units for stage in stages(self.model)]
        begin, own = sum(units[: self.places.start]), sum(units[self.places.start : self.places.stop])
        return self._state_from_numpy(np.ascontiguousarray(state_2BU[:, :, begin : begin + own]))

    @abstractmethod
    def _state_to_numpy(self, state: State) -> NDArray[np.float32]:
        """Of this rank's layers."""

    @abstractmethod
    def _state_from_numpy(self, state_2BU: NDArray[np.float32]) -> State:
        """Of this rank's layers."""

    def waited_seconds(self) -> float:
        """How long this rank has waited for its neighbours in a pipeline since this was last asked."""
        return 0.0

    @abstractmethod
    def drop_weights(self, masks: Mapping[str, NDArray[np.bool_]]) -> None:
        """From here on train without the recurrent weights that `masks` (`noise.weight_masks`) drop, until others are given: called
        before the first micro-batch of a window. Whatever only reads the model has all of them."""

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
        candidates: Candidates | None = None,
    ) -> State:
        """Forward and backward of one micro-batch; adds ``weight * d(sum of cross-entropy)`` to the window's gradient.

        `defer`: for how many more micro-batches the backward waits. Those that have waited go backward together, layer by layer.
        With `last` each gradient then starts its reduction over the ranks that hold its parameter as soon as it is complete
        (collective). The loss travels too, and beside it `Job.flags`. Where a model group divides the parameters every
        call is collective over it, with micro-batches of one shape.
        Targets of `streams.IGNORED` do not count. With `candidates` the cross-entropy, and the loss of the step, is that against
        these words alone, the same for all ranks. Returns the state after the last token.
        """

    @abstractmethod
    def step(self, *, learning_rate: float, clip: float | None, unscale: float) -> StepResult:
        """Finish the reduction, multiply the gradient by `unscale`, clip its global norm, apply it, begin a new window.

        A gradient is dropped instead of applied, on all ranks alike, if it or the loss is not finite, or if a rank is in trouble.
        With one that is not finite goes what was kept of those before.
        With `late_gradients` it starts the reduction, and applies the gradient of the window before, by what it was told then; loss
        and flags are those of this window all the same. Of a first one, before which there is none, the norm is 0.
        Raises RuntimeError if the window has had no last micro-batch. Collective.
        """

    @abstractmethod
    def catch_up(self, *, apply: bool = True) -> Applied | None:
        """Apply the gradient that the last `step` has left on its way, as that was told; None if there is none.

        Without `apply` it is dropped. Collective.
        """

    def joined_norm(self, norms: Mapping[GroupName | None, float]) -> float:
        """The norm of all parameters, of those of what this rank holds: undivided (None), and divided over a group. Collective."""
        squares = {group: self.job.sum(np.array([norms[group] ** 2]), group)[0] for group in norms if group}
        return math.hypot(norms.get(None, 0.0), *map(math.sqrt, squares.values()))

    @abstractmethod
    def gradients(self) -> Weights:
        """A copy of the gradient of the window so far, of the rows that this rank updates: reduced after a last micro-batch;
        its own, of all rows that it holds, before."""

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

        Logits exist for a few hundred tokens at a time. Where a model group divides the parameters it is collective over it, with
        micro-batches of one shape.
        """

    def _of_last_rank(self, losses_TB: Array) -> Array:
        """The losses that the last rank of a pipeline tells, on all of them; of others they are as they are."""
        return self.job.gather(losses_TB, "model")[-1] if self.is_pipeline else losses_TB

    @abstractmethod
    def logits(self, inputs_TB: NDArray[np.int32], state: State) -> tuple[NDArray[np.float32], State]:
        """Logits ``float32 [T, B, V]``, of an adaptive softmax log probabilities, and the state after. No gradient, no dropout."""

    @abstractmethod
    def next_logits(self, inputs_TB: NDArray[np.int32], state: State) -> tuple[NDArray[np.float32], State]:
        """Logits ``float32 [B, V]`` of the token after the last input, and the state after. No gradient, no dropout."""
