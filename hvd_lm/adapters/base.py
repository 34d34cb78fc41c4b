"""The contract of an adapter: everything that the framework-agnostic code may ask of a framework.

Arrays cross this border as NumPy, settings as floats. Only the LSTM state stays in the framework, as an opaque value.

Shapes: T time, B sequences of this rank, V vocabulary, H units.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hvd_lm.config import CommunicationConfig, ModelConfig, OptimizerConfig, TopologyConfig
from hvd_lm.errors import ConfigError, LostWorkerError
from hvd_lm.job import launcher
from hvd_lm.job.levers import horovod_environment
from hvd_lm.job.memory import keep_freed_memory
from hvd_lm.job.threads import default_threads
from hvd_lm.job.topology import Topology, arrange
from hvd_lm.model.parameters import Array, Weights

State: TypeAlias = Any
"""LSTM state (h, c of every layer) of the B sequences, in the framework's own tensors, detached from any graph."""


@dataclass(frozen=True)
class StepResult:
    """What an optimizer step tells; the same on all ranks of the data group."""

    loss_sum: float
    """Sum of the cross-entropy (nats) over the targets of the window, all data ranks."""
    gradient_norm: float
    """Global norm of the gradient, reduced and unscaled, before clipping."""
    applied: bool
    """False if the gradient was not finite: then weights and moments are unchanged."""


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
    """One framework's side of training. Construction joins the job; `build` makes the model.

        adapter = adapter_class("torch")()
        adapter.build(model_config, optimizer_config)
        adapter.load_weights(initial_weights(model_config, seed=1))
        state = adapter.zero_state(batch_size)
        state = adapter.accumulate(inputs_TB, targets_TB, state, weight=1 / targets, last=True)
        result = adapter.step(learning_rate=1e-3, clip=1.0, unscale=1.0)

    Collective calls (marked so) must be made by all ranks of the data group alike.
    """

    framework: ClassVar[str]
    """Name as in --framework."""
    horovod: ClassVar[ModuleType]
    """Horovod's module for the framework."""
    communication_errors: ClassVar[tuple[type[BaseException], ...]]
    """What the framework raises when a collective operation fails because another rank is gone."""

    model: ModelConfig
    optimizer: OptimizerConfig

    def __init__(
        self,
        communication: CommunicationConfig | None = None,
        topology: TopologyConfig | None = None,
        threads: int | None = None,
        *,
        deterministic: bool = False,
    ) -> None:
        """Initialise framework and Horovod for this rank. Collective over all ranks.

        Raises ConfigError if the topology does not fit the number of ranks, or the launcher is not one that Horovod knows.
        """
        self.communication = communication or CommunicationConfig()
        if deterministic and self.communication.fusion_threshold_mb is None:
            # What is fused, and with it the order of a sum over three ranks or more, depends on timing.
            self.communication = replace(self.communication, fusion_threshold_mb=0)
        self.threads = threads or default_threads()
        topology = topology or TopologyConfig()
        # The launcher's word first: a bad topology must not cost an initialisation of Horovod.
        expected = arrange(topology, launcher.launched_rank(), launcher.launched_size())
        self._set_threads(self.threads)
        keep_freed_memory()
        if deterministic:
            self._make_deterministic()
        with horovod_environment(self.communication):
            self._data_set = self._initialize_horovod(expected)
        if self.horovod.size() != expected.size:
            raise ConfigError(
                f"the launcher started {expected.size} processes, but Horovod sees {self.horovod.size()}: launch with horovodrun, "
                "or with the mpirun or srun of the MPI that Horovod was built with"
            )
        self._choose_device(self.horovod.local_rank())
        self.topology: Topology = arrange(topology, self.horovod.rank(), self.horovod.size())
        if self.communication.reduction == "adasum" and self.reduces:
            self._check_adasum()

    # --- the job -----------------------------------------------------------------------------------------

    def _initialize_horovod(self, expected: Topology) -> Any:
        """Join the job; returns the process set in which this rank reduces gradients."""
        hvd = self.horovod
        if expected.model_size == 1:
            hvd.init()
            return hvd.global_process_set
        data_sets = [hvd.ProcessSet(ranks) for ranks in expected.data_groups()]
        # Horovod refuses two process sets of the same ranks: with one data rank the model group is the whole job.
        model_sets = [hvd.ProcessSet(ranks) for ranks in expected.model_groups()] if expected.data_size > 1 else []
        hvd.init(process_sets=data_sets + model_sets)
        return data_sets[expected.model_rank]

    def _check_adasum(self) -> None:
        if not (self.horovod.mpi_enabled() or self.horovod.nccl_built()):
            raise ConfigError("--reduction adasum needs MPI or NCCL: launch with horovodrun --mpi")
        if self.topology.data_size & (self.topology.data_size - 1):
            raise ConfigError(f"--reduction adasum needs 2, 4, 8, ... data ranks, not {self.topology.data_size}")

    @abstractmethod
    def _set_threads(self, threads: int) -> None:
        """Limit the framework's compute threads; before Horovod starts."""

    @abstractmethod
    def _make_deterministic(self) -> None:
        """Let the framework use kernels only whose results are the same each time; for the whole process."""

    @abstractmethod
    def _choose_device(self, local_rank: int) -> None:
        """Take the accelerator of this rank, if there is one."""

    @property
    def reduces(self) -> bool:
        """Whether gradients travel at all: more than one data rank."""
        return self.topology.data_size > 1

    @abstractmethod
    def all_reduce(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sum of `values` over the data group. Collective."""

    def all_gather(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """`values` of every rank of the data group, stacked in the order of the data ranks: ``[R, ...]``. Collective."""
        slots = np.zeros((self.topology.data_size, *values.shape))
        slots[self.topology.data_rank] = values
        return self.all_reduce(slots).astype(np.float32)

    @property
    def _root(self) -> int:
        """First rank of this rank's data group."""
        return self.topology.data_groups()[self.topology.model_rank][0]

    def broadcast_object(self, value: Any) -> Any:
        """`value` of rank 0, on every rank of the job. Collective."""
        return self.horovod.broadcast_object(value, root_rank=0) if self.topology.size > 1 else value

    def summary(self) -> str:
        """Framework, device, Horovod and its controller, for the log."""
        controller = "MPI" if self.horovod.mpi_enabled() else "Gloo"
        version = importlib.metadata.version("horovod")
        return f"{self._framework_summary()}, Horovod {version} over {controller}"

    @abstractmethod
    def _framework_summary(self) -> str:
        """Framework, version and device."""

    # --- the model ---------------------------------------------------------------------------------------

    @abstractmethod
    def build(self, model: ModelConfig, optimizer: OptimizerConfig) -> None:
        """Make the model and the optimizer, on this rank alone; the weights are undefined until loaded."""

    @abstractmethod
    def load_weights(self, weights: Mapping[str, Array]) -> None:
        """Set the canonical weights (see hvd_lm.model.parameters). Raises CheckpointError if names or shapes do not fit."""

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
        """A copy of an LSTM state, ``float32 [L, 2, B, H]``: h and c of every layer."""

    @abstractmethod
    def state_from_numpy(self, state_L2BH: NDArray[np.float32]) -> State:
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
        With `last` each gradient then starts its reduction over the data group as soon as it is complete (collective).
        Targets of `streams.IGNORED` do not count. Returns the state after the last token.
        """

    @abstractmethod
    def step(self, *, learning_rate: float, clip: float | None, unscale: float) -> StepResult:
        """Finish the reduction, multiply the gradient by `unscale`, clip its global norm, apply it, begin a new window.

        A gradient that is not finite is dropped instead of applied, on all ranks alike. Collective.
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

        The gradient is that of the window so far; returns its sum of cross-entropy (nats).
        """

    @abstractmethod
    def evaluate(self, inputs_TB: NDArray[np.int32], targets_TB: NDArray[np.int32], state: State) -> Evaluated:
        """Cross-entropy of every target of this rank. No gradient, no dropout. Targets of `streams.IGNORED` do not count."""

    @abstractmethod
    def logits(self, inputs_TB: NDArray[np.int32], state: State) -> tuple[NDArray[np.float32], State]:
        """Logits ``float32 [T, B, V]`` and the state after. No gradient, no dropout."""


@contextlib.contextmanager
def lost_workers_reported(adapter: Adapter) -> Iterator[None]:
    """Raises LostWorkerError for a collective call that failed within."""
    try:
        yield
    except adapter.communication_errors as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise LostWorkerError(f"a collective operation failed, probably because another rank ended ({reason})") from error
