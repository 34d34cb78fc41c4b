"""The TensorFlow adapter: a list of stages in graph-compiled functions, a reducer and an update.

Shapes: K micro-batches, T time, B sequences of this rank, N tokens, V vocabulary, H units of the last layer, U of all layers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hvd_lm.adapters.assembly import Divided, noise_of_stages
from hvd_lm.adapters.base import INCOMPLETE, READ_ONLY, Adapter, Applied, Evaluated, OptimizerState, State, StepResult
from hvd_lm.adapters.tensorflow.compressed import Compressed
from hvd_lm.adapters.tensorflow.graphs import Graph
from hvd_lm.adapters.tensorflow.job import TensorFlowJob
from hvd_lm.adapters.tensorflow.late import LateUpdate
from hvd_lm.adapters.tensorflow.memory import reserve
from hvd_lm.adapters.tensorflow.model_group import ModelGroup
from hvd_lm.adapters.tensorflow.quiet import native_stderr_closed
from hvd_lm.adapters.tensorflow.reducer import GradientReducer, Way
from hvd_lm.adapters.tensorflow.selected import make_compressed
from hvd_lm.adapters.tensorflow.stages import make_stages, neighbour
from hvd_lm.adapters.tensorflow.stages.base import Tape, Tensors
from hvd_lm.adapters.tensorflow.stages.output import Judged, Output
from hvd_lm.adapters.tensorflow.stages.sampled_softmax import SAMPLED_SPECS, SampledWords
from hvd_lm.adapters.tensorflow.update import DynamicUpdate, Update
from hvd_lm.adapters.tensorflow.weight import Accumulation, Arriving, Weight, to_numpy
from hvd_lm.adapters.tensorflow.weight_drop import stand_ins
from hvd_lm.adapters.tensorflow.wire import Wire
from hvd_lm.adapters.waits import Waits
from hvd_lm.model.candidates import Candidates
from hvd_lm.model.weights import Array, Weights

with native_stderr_closed():
    import horovod.tensorflow as hvd
    import tensorflow as tf


class Deferred(NamedTuple):
    """A micro-batch whose forward has got to the output stage, and that waits for its backward."""

    inputs_TB: tf.Tensor
    targets_TB: tf.Tensor
    weight: tf.Tensor
    tapes: list[Tape]
    """Of the stages below the output, from below."""
    outputs_TBH: tf.Tensor
    """Of the last of them."""
    sampled: SampledWords | tuple[()] = ()
    """What the output judges against, if not all words."""


class TensorFlowAdapter(Adapter):
    """Weights as tf.Variables; every step runs in functions that are compiled once."""

    framework = "tensorflow"
    job_class = TensorFlowJob
    job: TensorFlowJob

    def _make(self) -> None:
        by_rows = {
            name: bool(self.update_config and self.update_config.keeps_absent_rows and share.parameter.looked_up)
            and name not in self.selected
            for name, share in self.shares.items()
        }
        reserve(self.shares.values(), copies=2 + len(self.update_config.moments) if self.update_config else 1)
        self._weights = {name: Weight(share, by_rows=by_rows[name]) for name, share in self.shares.items() if share.rows}
        self._values = {name: weight.stored for name, weight in self._weights.items()}
        self._stand_ins = stand_ins(self._weights, self.model.weight_dropout if self.update_config else 0.0)
        groups, self._wire = self.job.groups, Wire(halves=self.communication.compression == "fp16")
        self._neighbours = {
            side: neighbour(groups[side], self.job.links.get(side), self._wire)
            for side in ("below", "above")
            if self.is_pipeline and groups[side].communicates
        }
        model_group = ModelGroup(groups["model"], self._wire) if groups["model"].communicates and not self.is_pipeline else None
        divided = Divided(self.places, self.shares, model_group, **self._neighbours)
        self._lookup, self._stages, self._output = make_stages(self.model, self._weights | self._stand_ins, divided)
        self._compressed: Compressed | None = None
        if self.compressor and self.remembered:
            ranks, clip = self.job.groups["all"].size, self.clip_of_a_rank
            self._compressed = make_compressed(self.compressor, self.firsts, self.remembered, ranks, clip)
        self._reducer = GradientReducer(
            self._weights, self.moment_shares, self.job, self.communication, self._compressed, self.selected
        )
        self._update: Update | None = None
        self._late: LateUpdate | None = None
        if self.update_config:
            touched_rows = self._reducer.touched_rows
            self._update = Update(self.update_config, self._weights, self.moment_shares, self.job.groups, touched_rows)
            if self.communication.late_gradients:
                self._late = LateUpdate(self._weights, self._reducer, self._update)
        self._waits = Waits(self.job.topology)
        self._loss_sum = tf.Variable(tf.zeros((), tf.float64), trainable=False)
        self._deferred: list[list[Deferred]] = [[]]
        """Micro-batches whose forward is done: those of each backward."""
        self._arriving: dict[str, Arriving] = {}
        self._begin_window()
        self._compile()

    def _compile(self) -> None:
        """One trace for all lengths of a text."""
        indices, scalar = tf.TensorSpec((None, None), tf.int32), tf.TensorSpec((), tf.float32)
        state = [stage.state_specs for stage in self._stages]
        noise = [stage.noise_specs for stage in self._stages]
        self._forward = Graph(self._forward_graph, (indices, indices, state, scalar, noise))
        outputs = tf.TensorSpec((None, None, self._output.units), tf.float32)
        self._deferred_specs = Deferred(indices, indices, scalar, [stage.tape_specs for stage in self._stages], outputs)
        self._backward: dict[tuple[int, bool, bool, bool, Way], Callable[[list[Deferred], float], tf.Tensor]] = {}
        self._evaluate = Graph(self._evaluate_graph, (indices, indices, state))
        self._logits = Graph(self._logits_graph, (indices, state))
        self._next_logits = Graph(self._next_logits_graph, (indices, state))

    def _begin_window(self) -> None:
        self._first_backward = True
        self._window_sums: list[float] | None = None
        """Of a window that is complete: its loss, flags and waits of all ranks, activations that were beyond, and bytes."""

    # --- graphs ------------------------------------------------------------------------------------------

    def _forward_graph(
        self, inputs_TB: tf.Tensor, targets_TB: tf.Tensor, state: list[Tensors], weight: tf.Tensor, noise: list[Tensors]
    ) -> tuple[list[Tensors], Deferred]:
        activations, tapes, after = inputs_TB, [], []
        for stage, stage_state, stage_noise in zip(self._stages, state, noise, strict=True):
            of_stage = (inputs_TB,) if stage.reads_tokens else stage_noise
            activations, stage_after, tape = stage.forward(activations, stage_state, of_stage)
            tapes.append(tape)
            after.append(stage_after)
        return after, Deferred(inputs_TB, targets_TB, weight, tapes, self._output.passed(activations))

    def _backward_graph(self, deferred: list[Deferred], flags: tf.Tensor, *, first: bool, last: bool, way: Way) -> tf.Tensor:
        """Stage by stage from above: with `last`, what is complete travels while the stages below are at work.

        Returns the loss of the window so far, `flags` and waits of this rank, and whether its activations were beyond what travels;
        with `last`, their sums over all ranks; the bytes of the gradients that were sent; and when the last one was complete.
        """
        if self._lookup:
            self._reducer.note_inputs(self._lookup.touched([micro_batch.tapes[0] for micro_batch in deferred]), first=first)
        touched = self._reducer.inputs_complete(way) if last else {}
        send = partial(self._reducer.start, touched=touched, way=way) if last else _keep
        uses = chain(*(stage.weights for stage in self._stages), self._output.weights)
        accumulation = Accumulation(uses, first=first, send=send)
        judged = [Judged(m.outputs_TBH, m.targets_TB, tf.fill(tf.shape(m.inputs_TB), m.weight), m.sampled) for m in deferred]
        gradient, loss = self._output.backward(judged, accumulation)
        self._reducer.note_outputs(accumulation.touched, first=first)
        if last:
            touched |= self._reducer.outputs_complete(way)
        loss = self._loss_sum.assign(loss if first else self._loss_sum + loss)
        sums = tf.stack([loss, *tf.unstack(flags), self._wire.take_beyond() if last else tf.zeros((), tf.float64)])
        if last:
            sums = self._reducer.sums(sums, way)
        accumulation.complete(*self._output.weights)
        for index, stage in reversed(list(enumerate(self._stages))):
            # Reductions leave in this order, before the processor is taken, and no stage takes memory before its turn.
            with tf.control_dependencies([*accumulation.sent, gradient]):
                gradient = stage.backward([micro_batch.tapes[index] for micro_batch in deferred], gradient, accumulation)
        if last:
            self._reducer.backward_complete(way)
        return tf.concat([sums, [self._reducer.take_bytes_sent(), accumulation.complete_at if last else 0.0]], 0)

    def _infer(self, inputs_TB: tf.Tensor, state: list[Tensors]) -> tuple[tf.Tensor, list[Tensors]]:
        """Outputs of the last layer [T, B, H], and the state after."""
        activations, after = inputs_TB, []
        for stage, stage_state in zip(self._stages, state, strict=True):
            if stage.reads_tokens:
                activations, stage_after, _ = stage.forward(activations, stage_state, (inputs_TB,))
            else:
                activations, stage_after = stage.infer(activations, stage_state)
            after.append(stage_after)
        return activations, after

    def _evaluate_graph(
        self, inputs_TB: tf.Tensor, targets_TB: tf.Tensor, state: list[Tensors]
    ) -> tuple[tf.Tensor, tf.Tensor, list[Tensors]]:
        outputs_TBH, after = self._infer(inputs_TB, state)
        outputs_TBH = self._output.passed(outputs_TBH)
        return self._output.losses(outputs_TBH, targets_TB), outputs_TBH, after

    def _logits_graph(self, inputs_TB: tf.Tensor, state: list[Tensors]) -> tuple[tf.Tensor, list[Tensors]]:
        outputs_TBH, after = self._infer(inputs_TB, state)
        return self._whole_output.logits(self._whole_output.rows(outputs_TBH)), after

    def _next_logits_graph(self, inputs_TB: tf.Tensor, state: list[Tensors]) -> tuple[tf.Tensor, list[Tensors]]:
        outputs_TBH, after = self._infer(inputs_TB, state)
        return self._whole_output.logits(outputs_TBH[-1]), after

    @property
    def _whole_output(self) -> Output:
        assert isinstance(self._output, Output), "a pipeline gives no logits: read the model on one rank"
        return self._output

    def waited_seconds(self) -> float:
        return sum(neighbour.take_waited_seconds() for neighbour in self._neighbours.values())

    # --- weights, moments, state -------------------------------------------------------------------------

    def set_rows(self, name: str, start: int, values: Array) -> None:
        # A variable that was ever assigned to in part is copied by every dense read from then on.
        if name not in self._arriving:
            self._arriving[name] = Arriving(self.held[name])
        if self._arriving[name].add(start, values):
            self._variables[name].assign(self._arriving.pop(name).values)

    @property
    def _memory(self) -> dict[str, tf.Variable]:
        """What is remembered of compressed gradients, by the names of a checkpoint."""
        return self._compressed.memory if self._compressed else {}

    @property
    def _variables(self) -> dict[str, tf.Variable]:
        """All that this rank holds, by the names of a checkpoint."""
        return {**self._values, **(self._update.moments if self._update else {}), **self._memory}

    def set_applied_steps(self, steps: int, averaged_since: int | None = None) -> None:
        self._trained.applied_steps, self._trained.averaged_since = steps, averaged_since

    def weights(self, *, copy: bool = True) -> Weights:
        return to_numpy(self._values, copy=copy)

    @property
    def _trained(self) -> Update:
        assert self._update is not None, READ_ONLY
        return self._update

    def optimizer_state(self, *, copy: bool = True) -> OptimizerState:
        return self._trained.state(copy=copy)

    @property
    def applied_steps(self) -> int:
        return self._trained.applied_steps

    def memory(self, *, copy: bool = True) -> dict[str, Array]:
        return to_numpy(self._memory, copy=copy)

    def broadcast_state(self) -> None:
        update, everyone = self._update, self.job.groups["all"]
        if update and everyone.communicates:
            steps = tf.constant(update.applied_steps)
            name = "state.applied_steps"
            update.applied_steps = int(hvd.broadcast(steps, 0, name=name, process_set=everyone.process_set))
        variables = self._variables
        if update and not update.applied_steps:
            # Up to two thirds of all that would travel, and one number.
            variables = {name: variable for name, variable in variables.items() if name not in update.moments}
            update.begin()
        for name, variable in variables.items():
            self.job.broadcast_rows(name, variable, self.held[name])

    def zero_state(self, batch_size: int) -> State:
        return [tuple(tf.zeros((batch_size, stage.units)) for _ in stage.state_specs) for stage in self._stages]

    def select_state(self, state: State, sequences: Sequence[int]) -> State:
        chosen = tf.constant(sequences, tf.int32)
        return [tuple(tf.gather(tensor, chosen) for tensor in of_stage) for of_stage in state]

    def _state_to_numpy(self, state: State) -> NDArray[np.float32]:
        # What an attention has read is not carried.
        of_stages = [
            [tensor.numpy()[:, : stage.units] for tensor in tensors] for stage, tensors in zip(self._stages, state, strict=True)
        ]
        return np.stack([np.concatenate(kind, axis=1) for kind in zip(*filter(None, of_stages), strict=True)])

    def _state_from_numpy(self, state_2BU: NDArray[np.float32]) -> State:
        state: list[Tensors] = []
        begin = 0
        for stage in self._stages:
            state.append(tuple(tf.constant(values) for values in state_2BU[:, :, begin : begin + stage.units] if stage.state_specs))
            begin += stage.units
        return state

    # --- training ----------------------------------------------------------------------------------------

    def drop_weights(self, masks: Mapping[str, NDArray[np.bool_]]) -> None:
        for name, stand_in in self._stand_ins.items():
            stand_in.drop(masks[name])

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
        if self._deferred[-1] and self._deferred[-1][0].inputs_TB.shape != inputs_TB.shape:
            self._end_backward(last=False)
        of_stages = iter(noise_of_stages(self.model, self.places, dropout_masks, targets_TB, weight))
        noise = [tuple(tf.constant(next(of_stages)) for _ in stage.noise_specs) for stage in self._stages]
        state, deferred = self._forward(inputs_TB, targets_TB, state, weight, noise)
        if candidates:
            counts = candidates.log_expected(candidates.words_S), candidates.log_expected(targets_TB)
            deferred = deferred._replace(sampled=SampledWords(*map(tf.constant, (candidates.words_S, *counts))))
        self._deferred[-1].append(deferred)
        if last or not defer:
            self._end_backward(last=last)
        return state

    def _end_backward(self, *, last: bool) -> None:
        """All micro-batches of a backward are there. It runs, but in a pipeline, where all forwards of a window come first."""
        if self.is_pipeline and not last:
            self._deferred.append([])
            return
        *others, final = self._deferred
        self._deferred = [[]]
        for deferred in others:
            self._run_backward(deferred, last=False)
        self._run_backward(final, last=last)

    def _run_backward(self, deferred: list[Deferred], *, last: bool) -> None:
        """The rest of the backward of all micro-batches that wait for it, as of one with the sequences of all."""
        sampled = bool(deferred[0].sampled)
        way: Way = self._reducer.way(self.applied_steps, tells=self.tells) if last and self._update else "exact"
        key = (len(deferred), self._first_backward, last, sampled, way)
        if key not in self._backward:
            count, first, *_ = key
            graph = partial(self._backward_graph, first=first, last=last, way=way)
            specs = self._deferred_specs._replace(sampled=SAMPLED_SPECS) if sampled else self._deferred_specs
            signature = ([specs] * count, tf.TensorSpec((2 + len(self._waits.told),), tf.float64))
            self._backward[key] = Graph(graph, signature)
        sums = self._backward[key](deferred, tf.constant([*self.job.flags(), *self._waits.told], tf.float64))
        self._first_backward = False
        if last:
            *self._window_sums, complete_at = sums.numpy().tolist()
            self._waited_seconds = time.time() - complete_at

    def step(self, *, learning_rate: float, clip: float | None, unscale: float) -> StepResult:
        loss_sum, in_trouble, to_end, *waits, beyond, sent = self._complete_sums("step()")
        self._waits.hear(waits if self.tells else None)
        trusted = bool(np.isfinite(loss_sum) and not in_trouble and not beyond)
        if self._late:
            outcome, sent_late = self._late.step(learning_rate, clip, unscale, trusted=trusted)
            sent += sent_late
            self._waited_seconds += self._late.take_waited_seconds()
        else:
            outcome = self._trained.apply(learning_rate, clip, unscale, trusted=trusted)
        if self._compressed and not np.isfinite(outcome.norm):
            self._compressed.forget()
        self._begin_window()
        self._waits.note(self._waited_seconds)
        flags = int(in_trouble), int(to_end), int(beyond)
        return StepResult(
            loss_sum, outcome.norm, outcome.applied, *flags, int(sent), self._waits.figures(), self._waits.step_seconds
        )

    def catch_up(self, *, apply: bool = True) -> Applied | None:
        return self._late.catch_up(apply=apply) if self._late else None

    def _complete_sums(self, caller: str) -> list[float]:
        if self._window_sums is None:
            raise RuntimeError(INCOMPLETE.format(caller))
        return self._window_sums

    def gradients(self) -> Weights:
        if self._deferred[-1]:
            self._end_backward(last=False)
        gradients = {name: weight.gradient for name, weight in self._weights.items()}
        return {} if self._first_backward else to_numpy(gradients)

    def begin_dynamic_evaluation(self, rates: Mapping[str, Array], decays: Mapping[str, Array]) -> None:
        self._dynamic_update = DynamicUpdate(self._weights, rates, decays)

    def dynamic_step(self) -> float:
        loss_sum, *_ = self._complete_sums("dynamic_step()")
        self._dynamic_update.apply()
        self._begin_window()
        return loss_sum

    # --- reading -----------------------------------------------------------------------------------------

    def evaluate(self, inputs_TB: NDArray[np.int32], targets_TB: NDArray[np.int32], state: State) -> Evaluated:
        losses, outputs_TBH, state = self._evaluate(inputs_TB, targets_TB, state)
        losses_TB = self._of_last_rank(losses.numpy().reshape(inputs_TB.shape))
        return Evaluated(losses_TB, outputs_TBH.numpy(), state)

    def logits(self, inputs_TB: NDArray[np.int32], state: State) -> tuple[NDArray[np.float32], State]:
        logits, state = self._logits(inputs_TB, state)
        return logits.numpy().reshape(*inputs_TB.shape, -1), state

    def next_logits(self, inputs_TB: NDArray[np.int32], state: State) -> tuple[NDArray[np.float32], State]:
        logits, state = self._next_logits(inputs_TB, state)
        return logits.numpy(), state


def _keep(_: Weight) -> Sequence[tf.Tensor]:
    """Of a backward after which nothing travels."""
    return ()
