"""Who takes part: this process within its job, and what the ranks of a group do together. One subclass per framework.

Arrays cross this border as NumPy; gradients travel as the framework's own tensors, through the process set of their group.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import socket
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from hvd_lm.adapters.ending import ending_together
from hvd_lm.adapters.probe import Probe
from hvd_lm.config import CommunicationConfig, TopologyConfig
from hvd_lm.errors import ConfigError, LostWorkerError
from hvd_lm.job import launcher, levers, meeting, point_to_point
from hvd_lm.job.agreement import Trouble, source_digest
from hvd_lm.job.memory import keep_freed_memory
from hvd_lm.job.messages import warn
from hvd_lm.job.stop import Stop
from hvd_lm.job.threads import default_threads
from hvd_lm.job.topology import GroupName, Topology, arrange
from hvd_lm.job.watch import Watch
from hvd_lm.model.split import Share

MOST_VALUES = 2**31 - 1
"""Of a tensor that Horovod sends: it counts them in a 32-bit integer, and would cut a larger one."""
_SECONDS_TO_LEAVE = 5.0
_Number = TypeVar("_Number", bound=np.generic)


@dataclass(frozen=True)
class Group:
    """Ranks that call collective operations together."""

    ranks: tuple[int, ...]
    """Their ranks in the job, ascending."""
    place: int
    """Of this rank among them."""
    process_set: Any
    """Horovod's; None for a group of one, which has nothing to tell anybody."""

    @property
    def size(self) -> int:
        return len(self.ranks)

    @property
    def communicates(self) -> bool:
        return self.size > 1


class Job(ABC):
    """This rank and its groups (`GroupName` says which).

    Construction joins the job, and must be done by all ranks alike, like every method that is marked collective.
    """

    horovod: ClassVar[ModuleType]
    """Horovod's module for the framework."""
    probe_class: ClassVar[type[Probe]]
    communication_errors: ClassVar[tuple[type[BaseException], ...]]
    """What the framework raises when a collective operation fails because another rank is gone."""
    _levers: ClassVar[Mapping[str, Any] | None] = None
    """What Horovod read when it started, where it runs on in this process."""
    _world_ranks: ClassVar[tuple[int, ...]] = ()
    """Of the communicator that it runs on, if it was given one."""

    def __init__(
        self,
        communication: CommunicationConfig | None = None,
        topology: TopologyConfig | None = None,
        threads: int | None = None,
        *,
        deterministic: bool = False,
        comm: Any = None,
        multiply_adds: int | None = None,
    ) -> None:
        """Initialise framework and Horovod for this rank. Collective over all ranks, or over those of `comm`, of mpi4py.

        Raises ConfigError if the topology does not fit the number of ranks, the launcher is not one that Horovod knows, the ranks
        run different versions, or one of them has no device.
        """
        launcher.refuse_unknown_launcher()
        launcher.refuse_elastic_launcher()
        communication = communication or CommunicationConfig()
        if deterministic and communication.fusion_threshold_mb is None:
            # What is fused, and with it the order of a sum over three ranks or more, depends on timing.
            communication = replace(communication, fusion_threshold_mb=0)
        topology = topology or TopologyConfig()
        launcher.check_launch()
        if comm is not None and not self.horovod.mpi_built():
            raise ConfigError("comm= needs Horovod built with MPI: install OpenMPI, then python -m hvd_lm.job.build_horovod")
        # The launcher's word first: a bad topology must not cost an initialisation of Horovod.
        expected = arrange(topology, launcher.launched_rank(), launcher.launched_size())
        self.threads = self._set_threads(threads or self._default_threads(multiply_adds))
        self.chooses_threads = threads is None  # and a call may take fewer of them
        keep_freed_memory()
        if deterministic:
            self._make_deterministic()
        patience = levers.patience(communication)
        self.watch = Watch(patience if expected.size > 1 else 0)
        """Ends this process where it waits in vain."""
        if not self.horovod.is_initialized():
            meeting.await_ranks(patience)
        with levers.horovod_environment(communication), self.watch.kept():
            sets = self._join(expected, comm)
        hvd = self.horovod
        if hvd.size() != expected.size:
            raise ConfigError(
                f"the launcher started {expected.size} processes, but Horovod sees {hvd.size()}: launch with horovodrun, "
                "or with the mpirun or srun of the MPI that Horovod was built with"
            )
        self._note_levers(communication)
        self.topology: Topology = arrange(topology, hvd.rank(), hvd.size())
        self.groups: Mapping[GroupName, Group] = {name: self._group(ranks, sets) for name, ranks in self.topology.groups().items()}
        self.trouble = Trouble(self.communication_errors)
        """What this rank has to tell when the ranks agree."""
        self.stop = Stop()
        """Whether this rank is asked to stop."""
        with self.trouble.noted():
            self._choose_device(hvd.local_rank() if comm is None else launcher.launched_place())
        with ending_together(self):
            self.hosts: list[str] = self.tell(socket.gethostname())
            """That of each rank."""
            self.places = [f"rank {rank} on {host}" for rank, host in enumerate(self.hosts)]
            """How messages name the ranks."""
            self.agree(self._versions())
            self._obstacle = self._common_obstacle()
            self.links = self._links(comm, patience)
            """To the neighbours in a pipeline, where ranks can send to each other; Horovod's alltoall elsewhere."""
            self._warn_of_placement(comm)
        if communication.reduction == "adasum" and self.groups["data"].communicates:
            self._check_adasum()

    def _join(self, expected: Topology, comm: Any) -> Mapping[tuple[int, ...], Any]:
        """Start Horovod, unless an earlier job of this process has; the process sets that it has, by their ranks.

        Raises ConfigError if the earlier job was arranged in another way.
        """
        hvd = self.horovod
        # Horovod refuses two process sets of the same ranks.
        every = (*expected.data_groups(), *expected.model_groups(), *expected.neighbours(), expected.ends())
        groups = {tuple(group) for group in every}
        parts = sorted(ranks for ranks in groups if 1 < len(ranks) < expected.size)
        if hvd.is_initialized() and expected.size == 1 and not hvd.mpi_enabled():
            # So that the levers of this job count. Ranks of several processes could miss each other when they start anew, and MPI
            # cannot be started twice.
            hvd.shutdown()
        world_ranks = point_to_point.world_ranks(comm)
        if hvd.is_initialized() and world_ranks != Job._world_ranks and expected.size > 1:
            raise ConfigError("this process has joined a job of other ranks: use one comm= in a process")
        Job._world_ranks = world_ranks
        sets = {ranks: hvd.ProcessSet(ranks) for ranks in parts}
        try:
            # A rank alone is not launched, and needs no MPI.
            hvd.init(comm=comm if expected.size > 1 else None, process_sets=list(sets.values()))
        except KeyError as error:
            raise ConfigError(f"this process has joined a job without the group {error}: use one topology in a process") from error
        except ValueError as error:
            raise LostWorkerError(f"Horovod could not start, probably because another rank ended: {error}") from error
        return {**sets, tuple(range(expected.size)): hvd.global_process_set}

    def _note_levers(self, config: CommunicationConfig) -> None:
        """Warn where Horovod, which reads its levers when it starts, goes on with those of an earlier job of this process."""
        wanted, has = levers.levers(config), self._levers
        if has is None or launcher.launched_size() == 1:
            Job._levers = wanted
        elif other := [f"--{name.replace('_', '-')}" for name, value in wanted.items() if value != has[name]]:
            warn(f"{', '.join(other)} stay as they were for the first job of this process: start another one for other levers")

    def _versions(self) -> dict[str, str]:
        """Of all that must be the same on all ranks."""
        if not self.groups["all"].communicates:
            return {}
        framework = self.horovod.__name__.rpartition(".")[2]
        return {
            "run another hvd_lm": f"{importlib.metadata.version('hvd_lm')} ({source_digest()})",
            "run another framework": f"{framework} {sys.modules[framework].__version__}",
            "run another Horovod": importlib.metadata.version("horovod"),
        }

    def _common_obstacle(self) -> str:
        """Why ranks that hold a model together cannot use mpi4py: one that cannot, and all do without."""
        if not (self.topology.model_size > 1 and self.horovod.mpi_enabled()):
            return "Horovod does not run over MPI"
        return next(filter(None, self.tell(point_to_point.obstacle(self.horovod))), "")

    def _links(self, comm: Any, patience: float) -> Mapping[GroupName, point_to_point.Link]:
        sides: tuple[GroupName, ...] = ("below", "above")
        pairs = [(side, self.groups[side]) for side in sides if side in self.groups]
        if not pairs or self._obstacle:
            return {}
        everyone = point_to_point.communicator(comm)
        others = {side: pair.ranks[1 - pair.place] for side, pair in pairs if pair.communicates}
        return {side: point_to_point.Link(everyone, other, patience) for side, other in others.items()}

    def _warn_of_placement(self, comm: Any) -> None:
        """Collective over the job, where ranks hold a model together."""
        if self.topology.model_size > 1:
            host = socket.gethostname() if self._obstacle else point_to_point.host_of(comm)
            if self.topology.is_scattered(self.tell(host)):
                warn("ranks that hold a model together are on several hosts: number them host by host (mpirun --map-by slot)")

    def _group(self, ranks: Sequence[int], sets: Mapping[tuple[int, ...], Any]) -> Group:
        return Group(tuple(ranks), ranks.index(self.topology.rank), sets[tuple(ranks)] if len(ranks) > 1 else None)

    def _check_adasum(self) -> None:
        if self.topology.split:
            raise ConfigError("--reduction adasum works on whole gradients: use it without --model-parallel and --split")
        if not (self.horovod.mpi_enabled() or self.horovod.nccl_built()):
            raise ConfigError("--reduction adasum needs MPI or NCCL: launch with horovodrun --mpi")
        if self.topology.data_size & (self.topology.data_size - 1):
            raise ConfigError(f"--reduction adasum needs 2, 4, 8, ... data ranks, not {self.topology.data_size}")

    def _default_threads(self, _: int | None) -> int:
        """For calls of so many multiply-adds, if no others will come."""
        return default_threads()

    @abstractmethod
    def _set_threads(self, threads: int) -> int:
        """Limit the framework's compute threads, before Horovod starts; how many there are."""

    @abstractmethod
    def _make_deterministic(self) -> None:
        """Let the framework use kernels only whose results are the same each time; for the whole process."""

    @abstractmethod
    def _choose_device(self, local_rank: int) -> None:
        """Take the accelerator of this rank, if there is one."""

    @abstractmethod
    def _to_tensor(self, values: NDArray[_Number]) -> Any:
        """`values` as what Horovod takes."""

    @abstractmethod
    def _to_numpy(self, tensor: Any) -> NDArray[Any]:
        """The inverse of `_to_tensor`."""

    @abstractmethod
    def _framework_summary(self) -> str:
        """Framework, version and device."""

    @property
    def controller(self) -> str:
        """MPI or Gloo."""
        return "MPI" if self.horovod.mpi_enabled() else "Gloo"

    def summary(self) -> str:
        """Framework, device, Horovod and its controller, for the log."""
        return f"{self._framework_summary()}, Horovod {importlib.metadata.version('horovod')} over {self.controller}"

    def headline(self) -> str:
        """The summary, and how many ranks and threads there are."""
        by = "; activations point to point by mpi4py" if self.links else ""
        if not by and "above" in self.groups and self.horovod.mpi_enabled():
            by = f"; activations by Horovod's all-to-all, as {self._obstacle}"
        return f"{self.summary()}; {self.topology.size} rank(s) x {self.threads} thread(s){by}"

    def leave(self) -> None:
        """End Horovod in this process. Collective over all ranks."""
        self.horovod.shutdown()

    def holders(self, share: Share) -> Group:
        """The ranks that hold the same rows of a parameter as this one, over which their gradient is summed.

        Raises ConfigError if they have more values than Horovod can count.
        """
        group, values = self.groups[share.held_by], math.prod(share.shape)
        if group.communicates and values > MOST_VALUES:
            raise ConfigError(
                f"{share.parameter.name} has {values:,} values, and Horovod sends at most {MOST_VALUES:,} at once: take a smaller "
                "--vocabulary-size or narrower layers, split it (--model-parallel), or train on one rank"
            )
        return group

    # --- what a group does together ----------------------------------------------------------------------

    def _called(self, group: GroupName) -> Group:
        self.watch.sign()
        return self.groups[group]

    def sum(self, values: NDArray[_Number], group: GroupName = "readers") -> NDArray[_Number]:
        """Sum of `values` over the group. Collective."""
        its = self._called(group)
        if not its.communicates:
            return values.copy()
        hvd = self.horovod
        return self._to_numpy(hvd.allreduce(self._to_tensor(values), name=f"sum.{group}", op=hvd.Sum, process_set=its.process_set))

    def gather(self, values: NDArray[_Number], group: GroupName = "readers") -> NDArray[_Number]:
        """`values` of every rank of the group, of one shape, stacked in the order of its ranks: ``[R, ...]``. Collective."""
        return self.concatenate(values[None], group)

    def concatenate(self, rows: NDArray[_Number], group: GroupName) -> NDArray[_Number]:
        """The rows of every rank of the group, of any number, in the order of its ranks. Collective."""
        its = self._called(group)
        if not its.communicates:
            return rows.copy()
        return self._to_numpy(self._allgather(self._to_tensor(np.ascontiguousarray(rows)), f"concatenate.{group}", its.process_set))

    def _allgather(self, rows: Any, name: str, process_set: Any) -> Any:
        """Of the framework's tensors. Ranks of all frameworks meet in it: so they can tell each other that they differ."""
        return self.horovod.allgather(rows, name=name, process_set=process_set)

    def scatter_sum(self, values: NDArray[_Number], group: GroupName = "readers") -> NDArray[_Number]:
        """This rank's share of the rows of the sum of `values` over the group; the first ranks have one more. Collective."""
        its = self._called(group)
        if not its.communicates:
            return values.copy()
        hvd, tensor = self.horovod, self._to_tensor(values)
        return self._to_numpy(hvd.reducescatter(tensor, name=f"scatter_sum.{group}", op=hvd.Sum, process_set=its.process_set))

    def exchange(
        self, values: NDArray[_Number], splits: Sequence[int], group: GroupName = "readers"
    ) -> tuple[NDArray[_Number], list[int]]:
        """Send the first ``splits[0]`` rows of `values` to the group's first rank, and so on.

        Returns the rows that came, in the order of the ranks, and how many came from each. Collective.
        """
        its = self._called(group)
        if not its.communicates:
            return values.copy(), list(splits)
        sent = self._to_tensor(np.array(splits, np.int32))
        received, counts = self.horovod.alltoall(
            self._to_tensor(values), splits=sent, name=f"exchange.{group}", process_set=its.process_set
        )
        return self._to_numpy(received), [int(count) for count in self._to_numpy(counts)]

    def tell(self, word: Any, group: GroupName = "all") -> list[Any]:
        """`word`, plain values as JSON has them, of every rank of the group, in the order of its ranks. Collective."""
        if not self.groups[group].communicates:
            return [word]
        lines = self.concatenate(np.frombuffer(json.dumps(word).encode() + b"\n", np.uint8), group)
        return [json.loads(line) for line in lines.tobytes().splitlines()]

    def flags(self) -> tuple[float, float]:
        """What this rank tells beside the loss of a step: 1 if it is in trouble, and 1 if it is to end there; else 0."""
        return float(self.trouble.error is not None), float(self.stop.reason is not None or self.stop.members_change)

    def common_error(self, values: Mapping[str, Any] | None = None) -> Exception | None:
        """What all ranks have to raise: trouble of one of them, or a ConfigError where `values` differ. Collective.

        `values` are plain; their names go on "1 of 2 ranks ... than rank 0", as "read another text" does.
        """
        return self.trouble.verdict(self.tell(self.trouble.word(values or {})), self.places)

    def agree(self, values: Mapping[str, Any] | None = None) -> None:
        """Raises `common_error`, on all ranks alike. Collective."""
        if error := self.common_error(values):
            raise error

    def broadcast(self, value: Any, root: int = 0) -> Any:
        """`value` of rank `root` on every rank of the job. Collective."""
        if not self.groups["all"].communicates:
            return value
        return self.horovod.broadcast_object(value, root_rank=root, name="broadcast")

    @classmethod
    def abandon(cls) -> bool:
        """Leave alone: the other ranks' collective calls fail, those that they are in as well as later ones.

        Returns whether this process can join again.
        """
        # What is on its way arrives first; where another rank hangs, nothing does.
        leaving = threading.Thread(target=cls.horovod.shutdown, daemon=True)
        leaving.start()
        leaving.join(_SECONDS_TO_LEAVE)
        return not leaving.is_alive()

    def barrier(self, group: GroupName = "all") -> None:
        """Returns when all ranks of the group have called it. Collective."""
        # horovod.tensorflow has no barrier.
        self.sum(np.zeros(1), group)


def device_of(local_rank: int, devices: int) -> int:
    """Which of the `devices` that this process sees is this rank's: the only one, where a scheduler shows each rank its own.

    Raises ConfigError if there is none for it.
    """
    if devices == 1:
        return 0
    if local_rank >= devices:
        raise ConfigError(
            f"no GPU is left for local rank {local_rank}: start at most {devices} rank(s) on this host, or hide its GPUs with "
            "CUDA_VISIBLE_DEVICES="
        )
    return local_rank
