"""Gradients on their way: each leaves as soon as the last backward of a window has completed it.

All of it becomes part of the graph of that backward, where the next stage waits for what is sent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from functools import partial
from typing import Literal, TypeAlias

from hvd_lm.adapters.job import Job
from hvd_lm.adapters.tensorflow.compressed import Compressed, Counts
from hvd_lm.adapters.tensorflow.quiet import native_stderr_closed
from hvd_lm.adapters.tensorflow.weight import Gradient, Weight
from hvd_lm.config import CommunicationConfig
from hvd_lm.model.parameters import LookedUp
from hvd_lm.model.split import ON_THE_WAY, SUMMED_VALUES, Share, rounds

with native_stderr_closed():
    import horovod.tensorflow as hvd
    import tensorflow as tf


Way: TypeAlias = Counts | Literal["exact", "late", "local", "quiet"]
"""How gradients travel. With counts: compressed. late: they stay on their rank for now. local: for good, as does the loss.
quiet: as does all that ranks tell each other."""
_STAY = ("late", "local", "quiet")


class GradientReducer:
    """Sums each gradient over the ranks that hold its parameter.

    Of a looked-up parameter only those rows travel that the window touched on some rank.
    """

    def __init__(
        self,
        weights: Mapping[str, Weight],
        moment_shares: Mapping[str, Share],
        job: Job,
        communication: CommunicationConfig,
        compressed: Compressed | None,
        selected: Set[str] = frozenset(),
    ) -> None:
        """Of a parameter whose moments alone are divided, a rank gets the sum of the rows that it updates. Of those that are
        `selected` from, it does not count which rows were touched."""
        self._communication, self._compressed = communication, compressed
        self._sent: list[tf.Tensor] = []
        """Bytes of what the graph that is being made sends."""
        self._scattered = {name: share for name, share in moment_shares.items() if name in weights and share != weights[name].share}
        self._groups = {name: job.holders(weight.share) for name, weight in weights.items()}
        self._everyone = job.groups["all"]
        self._compression = hvd.Compression.fp16 if communication.compression == "fp16" else hvd.Compression.none
        self._op = hvd.Adasum if communication.reduction == "adasum" else hvd.Sum
        self._looked_up: dict[LookedUp, list[str]] = {
            by: [
                name
                for name, weight in weights.items()
                if weight.share.parameter.looked_up == by
                and name not in selected
                and (weight.by_rows or self._groups[name].communicates)
            ]
            for by in ("inputs", "output")
        }
        """Names of parameters that have the same rows."""
        # Halves are the smallest numbers that Horovod reduces in both frameworks; any number above 0 means touched.
        self._touched = {
            by: tf.Variable(tf.zeros(weights[names[0]].shape[0], tf.float16), trainable=False)
            for by, names in self._looked_up.items()
            if names
        }

    def note_inputs(self, rows: tf.Tensor, *, first: bool) -> None:
        """Rows that were looked up, of each backward of a window; the `first` one forgets those of the window before."""
        if "inputs" in self._touched:
            _note(self._touched["inputs"], rows, first=first)

    def inputs_complete(self, way: Way) -> dict[str, tf.Tensor]:
        """For each parameter that inputs look up, above 0 where a row is touched on some rank, or in a local step on this one, [V].
        Collective."""
        return self._union("inputs", "touched_rows", way)

    def note_outputs(self, touched: Mapping[str, Sequence[tf.Tensor]], *, first: bool) -> None:
        """As `note_inputs`, of rows of the output's weights, by name; all rows of those that are absent."""
        for name in self._looked_up["output"][:1]:
            touched_V = self._touched["output"]
            rows = tf.concat(touched[name], 0) if name in touched else tf.range(touched_V.shape[0])
            _note(touched_V, rows, first=first)

    def outputs_complete(self, way: Way) -> dict[str, tf.Tensor]:
        """As `inputs_complete`, of the output's weights. Collective."""
        return self._union("output", "touched_rows.output", way)

    def _union(self, by: LookedUp, as_name: str, way: Way) -> dict[str, tf.Tensor]:
        names = self._looked_up[by]
        if not names:
            return {}
        touched_V, group = self._touched[by], self._groups[names[0]]
        of_all_V = touched_V.read_value()
        if group.communicates and way not in ("local", "quiet"):
            self._count(of_all_V)
            of_all_V = hvd.allreduce(of_all_V, name=as_name, op=hvd.Sum, process_set=group.process_set)
            of_all_V = touched_V.assign(of_all_V).read_value()
        return dict.fromkeys(names, of_all_V)

    def touched_rows(self, weight: Weight) -> tf.Tensor:
        """Of a window that is complete, ascending, the same on all ranks that hold them."""
        return tf.where(self._touched[weight.share.parameter.looked_up] > 0)[:, 0]

    def sums(self, sums: tf.Tensor, way: Way) -> tf.Tensor:
        """Of the loss, and of what travels beside it, over all ranks. Collective."""
        if not self._everyone.communicates or way == "quiet":
            return sums
        own = sums[:1] if way == "local" else sums[:0]
        of_all = hvd.allreduce(sums[own.shape[0] :], name="loss", op=hvd.Sum, process_set=self._everyone.process_set)
        return tf.concat([own, of_all], 0)

    def way(self, applied_steps: int, *, tells: bool) -> Way:
        """How gradients travel after so many optimizer steps, and what `tells` of the next one."""
        if self._communication.is_local(applied_steps):
            return "local" if tells else "quiet"
        if self._communication.late_gradients:
            return "late"
        if self._compressed is None or applied_steps < self._compressed.exact_steps:
            return "exact"
        return self._compressed.counts(applied_steps)

    def take_bytes_sent(self) -> tf.Tensor:
        """Of the gradients of a window, and of what says which rows of them there are: all that this graph sends, float64."""
        total = tf.add_n([tf.zeros((), tf.float64), *self._sent])
        self._sent = []
        return total

    def _count(self, wire: tf.Tensor) -> None:
        self._sent.append(tf.cast(tf.size(wire), tf.float64) * wire.dtype.size)

    def touched(self) -> dict[str, tf.Tensor]:
        """What `inputs_complete` and `outputs_complete` have given of a window; the next one does not change it."""
        return {name: tf.identity(self._touched[by]) for by, names in self._looked_up.items() for name in names}

    @property
    def communicates(self) -> bool:
        """Whether any other rank has a part in a gradient."""
        return self._everyone.communicates

    def size(self, gradient: Gradient, touched: Mapping[str, tf.Tensor]) -> int:
        """Bytes of it on the wire, as it is or as halves."""
        rows = int(tf.math.count_nonzero(touched[gradient.name])) if gradient.name in touched else gradient.shape[0]
        return rows * math.prod(gradient.shape[1:]) * (2 if self._communication.compression == "fp16" else 4)

    def start(self, weight: Gradient, touched: Mapping[str, tf.Tensor], *, way: Way) -> Sequence[tf.Tensor]:
        """Sum it, which is complete; `touched` is what `inputs_complete` gave. Returns what is sent. Collective."""
        if way in _STAY or not self._groups[weight.name].communicates:
            return ()
        rows = tf.where(touched[weight.name] > 0)[:, 0] if weight.name in touched else None
        if self._compressed and weight.name in self._compressed.names and way != "exact":
            return self._compressed.start(weight, rows, partial(self._sum, weight.name))
        if rows is not None:
            wire, context = self._compression.compress(tf.gather(weight.gradient, rows))
            weight.gradient.scatter_update(tf.IndexedSlices(self._all_reduce(weight.name, wire, context), rows))
        else:
            if share := self._scattered.get(weight.name):
                weight.gradient.assign(self._own_rows(share, weight.take_gradient()))
                return ()
            wire, context = self._compression.compress(weight.take_gradient())
            weight.gradient.assign(self._all_reduce(weight.name, wire, context))
        return (wire,)

    def backward_complete(self, way: Way) -> None:
        """All gradients of the window have started. Collective."""
        if self._compressed and not isinstance(way, str):
            self._compressed.backward_complete(way, self._gather)

    def _gather(self, wire: tf.Tensor, name: str) -> tf.Tensor:
        """That of all ranks, one after the other."""
        self._count(wire)
        return hvd.allgather(wire, name=name, process_set=self._everyone.process_set)

    def _own_rows(self, share: Share, gradient: tf.Tensor) -> tf.Tensor:
        """The sum of the rows that this rank updates.

        Horovod's reduce-scatter takes memory for three copies of a gradient over Gloo; here a few blocks are on their way.
        """
        name, sums = share.parameter.name, list[tf.Tensor]()
        group = self._groups[name]
        for number, blocks in enumerate(rounds(share, max(1, SUMMED_VALUES // group.size))):
            with tf.control_dependencies(sums[-ON_THE_WAY:][:1] if number >= ON_THE_WAY else []):
                sent = tf.concat([gradient[block.start : block.stop] for block in blocks], 0)
            wire, context = self._compression.compress(sent)
            splits = [len(block) for block in blocks]
            self._count(wire)
            received, _ = hvd.alltoall(wire, splits, name=f"gradient.{name}.{number}", process_set=group.process_set)
            shape = (group.size, splits[share.place], *share.shape[1:])
            sums.append(tf.reduce_sum(tf.reshape(self._compression.decompress(received, context), shape), 0))
        return tf.concat(sums, 0)

    def _all_reduce(self, name: str, wire: tf.Tensor, context: tf.DType | None) -> tf.Tensor:
        return self._compression.decompress(self._sum(name, wire, f"gradient.{name}"), context)

    def _sum(self, name: str, wire: tf.Tensor, as_name: str) -> tf.Tensor:
        """Over the ranks that hold the parameter `name`."""
        self._count(wire)
        return hvd.allreduce(wire, name=as_name, op=self._op, process_set=self._groups[name].process_set)


def _note(touched_V: tf.Variable, rows: tf.Tensor, *, first: bool) -> None:
    if first:
        touched_V.assign(tf.zeros_like(touched_V))
    touched_V.scatter_update(tf.IndexedSlices(tf.ones_like(rows, tf.float16), rows))
