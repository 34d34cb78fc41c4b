"""The TensorFlow adapter: graph-compiled functions over tf.Variables, gradients through horovod.tensorflow.

Shapes: T time, B sequences of this rank, N = T*B tokens, V vocabulary, H units.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from horovod.common.exceptions import HorovodInternalError
from numpy.typing import NDArray

from hvd_lm.adapters.base import Adapter, Evaluated, OptimizerState, State, StepResult
from hvd_lm.adapters.tensorflow.quiet import native_stderr_closed
from hvd_lm.adapters.tensorflow.stages.lstm import Kernels, Tape, backward, forward, side_by_side, tape_specs
from hvd_lm.config import ModelConfig, OptimizerConfig
from hvd_lm.errors import CheckpointError
from hvd_lm.model.noise import keep_probability
from hvd_lm.model.weights import Array, Weights, check_weights, weight_shapes

with native_stderr_closed():
    import horovod.tensorflow as hvd
    import tensorflow as tf

_MOMENTS = {"adam": ("first", "second"), "sgd": ("momentum",)}


CHUNK = 256
"""Tokens whose logits exist at a time: enough rows for the products to be nearly as fast as with all of them."""


class Deferred(NamedTuple):
    """A micro-batch whose forward has got to the outputs of the last layer, and that waits for its backward."""

    inputs_TB: tf.Tensor
    targets_TB: tf.Tensor
    weight: tf.Tensor
    masks: list[tf.Tensor]
    tapes: list[Tape]
    """Of the layers, from below."""
    outputs_TBH: tf.Tensor
    """Of the last layer, after dropout."""


class TensorFlowAdapter(Adapter):
    """Canonical weights as tf.Variables; every step runs in functions that are compiled once."""

    framework = "tensorflow"
    horovod = hvd
    communication_errors = (HorovodInternalError, tf.errors.UnknownError, tf.errors.AbortedError, tf.errors.FailedPreconditionError)

    # --- the job -----------------------------------------------------------------------------------------

    def _set_threads(self, threads: int) -> None:
        try:
            tf.config.threading.set_intra_op_parallelism_threads(threads)
            tf.config.threading.set_inter_op_parallelism_threads(1)
        except RuntimeError:  # fixed since TensorFlow ran its first operation in this process
            self.threads = tf.config.threading.get_intra_op_parallelism_threads()

    def _make_deterministic(self) -> None:
        tf.config.experimental.enable_op_determinism()

    def _choose_device(self, local_rank: int) -> None:
        if gpus := tf.config.list_physical_devices("GPU"):
            for gpu in gpus:
                tf.config.experimental.set_memory_growth(gpu, True)
            tf.config.set_visible_devices(gpus[local_rank], "GPU")

    def _framework_summary(self) -> str:
        devices = ", ".join(device.device_type for device in tf.config.get_visible_devices())
        return f"TensorFlow {tf.__version__} on {devices}"

    def all_reduce(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        if not self.reduces:
            return values.copy()
        total = hvd.allreduce(tf.constant(values), name="metrics", op=hvd.Sum, process_set=self._data_set)
        return np.asarray(total.numpy())

    # --- the model ---------------------------------------------------------------------------------------

    def build(self, model: ModelConfig, optimizer: OptimizerConfig) -> None:
        self.model, self.optimizer = model, optimizer
        shapes = weight_shapes(model)

        def variables(prefix: str) -> dict[str, tf.Variable]:
            names = {name: f"{prefix}{name}".replace("/", "_") for name in shapes}
            return {name: tf.Variable(tf.zeros(shapes[name]), name=names[name], trainable=False) for name in shapes}

        self._weights = variables("")
        # Empty but within a window: what works in the memory of a gradient takes it out (_take).
        self._accumulated = {
            name: tf.Variable(tf.zeros((0, *shape[1:])), name=f"gradient_{name}", trainable=False, shape=(None, *shape[1:]))
            for name, shape in shapes.items()
        }
        moments = () if optimizer.optimizer == "sgd" and optimizer.momentum == 0 else _MOMENTS[optimizer.optimizer]
        self._moments = {f"{moment}/{name}": v for moment in moments for name, v in variables(f"{moment}/").items()}
        self._loss_sum = tf.Variable(tf.zeros((), tf.float64), trainable=False)
        # A tied embedding is the output kernel too: its gradient has no zero rows.
        self._touched_V: tf.Variable | None = None
        if self.reduces and not model.tie_embedding:
            self._touched_V = tf.Variable(tf.zeros(shapes["embedding"][0], tf.float16), trainable=False)
        self._applied_steps = 0
        self._deferred: list[Deferred] = []
        self._begin_window()
        self._keep_probability = keep_probability(model.dropout)
        self._compression = hvd.Compression.fp16 if self.communication.compression == "fp16" else hvd.Compression.none
        self._reduction = hvd.Adasum if self.communication.reduction == "adasum" else hvd.Sum
        # One trace for all lengths of a text.
        indices = tf.TensorSpec((None, None), tf.int32)
        scalar = tf.TensorSpec((), tf.float32)
        state = [(tf.TensorSpec((None, model.hidden_size), tf.float32),) * 2] * model.layers
        widths = [model.embedding_size, *[model.hidden_size] * model.layers]
        masks = [tf.TensorSpec((None, None, width), tf.bool) for width in widths] if model.dropout else []
        self._forward_to_wait = tf.function(self._forward_graph, input_signature=(indices, indices, state, scalar, masks))
        tapes = [tape_specs(width, model.hidden_size) for width in widths[:-1]]
        outputs = tf.TensorSpec((None, None, model.hidden_size), tf.float32)
        self._deferred_specs = Deferred(indices, indices, scalar, masks, tapes, outputs)
        self._backward: dict[tuple[int, bool, bool], Callable[[list[Deferred]], tf.Tensor]] = {}
        self._apply = tf.function(self._apply_graph, input_signature=(scalar, scalar, scalar, scalar))
        self._evaluate = tf.function(self._losses, input_signature=(indices, indices, state))
        self._logits = tf.function(self._logits_graph, input_signature=(indices, state))

    def _begin_window(self) -> None:
        self._first_backward = True
        self._window_loss: tf.Tensor | None = None
        """Of a window that is complete."""

    @property
    def _output_kernel(self) -> str:
        return "embedding" if self.model.tie_embedding else "output_kernel"

    def _kernels(self, layer: int) -> Kernels:
        return Kernels(*(tf.convert_to_tensor(self._weights[name]) for name in _layer_names(layer)))

    def _forward(self, inputs_TB: tf.Tensor, state: State, masks: Sequence[tf.Tensor] = ()) -> tuple[list[Tape], tf.Tensor, State]:
        """Tapes of the layers, outputs of the last one after dropout [T, B, H], and the state after."""
        activations = self._drop(tf.gather(self._weights["embedding"], inputs_TB), masks, 0)
        tapes, after = [], []
        for layer, (h, c) in enumerate(state):
            tape, *layer_after = forward(activations, self._kernels(layer), h, c)
            activations = self._drop(tape.outputs_TBH, masks, layer + 1)
            tapes.append(tape)
            after.append(tuple(layer_after))
        return tapes, activations, after

    def _drop(self, activations: tf.Tensor, masks: Sequence[tf.Tensor], place: int) -> tf.Tensor:
        return activations * tf.cast(masks[place], tf.float32) / self._keep_probability if masks else activations

    def _logits_of(self, outputs_NH: tf.Tensor) -> tf.Tensor:
        """[N, V]"""
        product = tf.matmul(outputs_NH, self._weights[self._output_kernel], transpose_b=True)
        return tf.nn.bias_add(product, self._weights["output_bias"])

    def _logits_graph(self, inputs_TB: tf.Tensor, state: State) -> tuple[tf.Tensor, State]:
        _, outputs_TBH, state = self._forward(inputs_TB, state)
        return self._logits_of(self._tokens(outputs_TBH)), state

    def _tokens(self, outputs_TBH: tf.Tensor) -> tf.Tensor:
        return tf.reshape(outputs_TBH, (-1, self.model.hidden_size))

    def _cross_entropy(self, outputs_NH: tf.Tensor, targets_N: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Of every target [N]; its gradient by the logits [N, V]; and 1 for each target that counts, 0 for others [N]."""
        # The kernel refuses negative labels, so ignored targets (< 0) become class 0 with no weight.
        losses, by_logits = tf.raw_ops.SparseSoftmaxCrossEntropyWithLogits(
            features=self._logits_of(outputs_NH), labels=tf.maximum(targets_N, 0)
        )
        counted = tf.cast(targets_N >= 0, tf.float32)
        return losses * counted, by_logits, counted

    def _losses(self, inputs_TB: tf.Tensor, targets_TB: tf.Tensor, state: State) -> tuple[tf.Tensor, tf.Tensor, State]:
        """Cross-entropy of every target [N], outputs of the last layer [T, B, H], and the state after."""
        _, outputs_TBH, state = self._forward(inputs_TB, state)
        losses, _, _ = self._cross_entropy(self._tokens(outputs_TBH), tf.reshape(targets_TB, (-1,)))
        return losses, outputs_TBH, state

    def _forward_graph(
        self, inputs_TB: tf.Tensor, targets_TB: tf.Tensor, state: State, weight: tf.Tensor, masks: list[tf.Tensor]
    ) -> tuple[State, Deferred]:
        tapes, outputs_TBH, state = self._forward(inputs_TB, state, masks)
        return state, Deferred(inputs_TB, targets_TB, weight, masks, tapes, outputs_TBH)

    def _begin(self, name: str) -> None:
        """The gradient of a window, as zeros."""
        # What tf.zeros makes becomes a constant of the graph, which stays in memory.
        self._accumulated[name].assign(tf.raw_ops.Empty(shape=self._weights[name].shape, dtype=tf.float32, init=True))

    def _take(self, name: str) -> tf.Tensor:
        """The gradient of the window, for an operation that may work in its memory; its variable is empty until it is assigned."""
        accumulated, shape = self._accumulated[name], self._weights[name].shape
        gradient = accumulated.read_value()
        with tf.control_dependencies([gradient]):
            emptied = accumulated.assign(tf.zeros((0, *shape[1:])))
        with tf.control_dependencies([emptied]):
            return tf.ensure_shape(tf.identity(gradient), shape)

    def _add(self, name: str, gradient: tf.Tensor, first: bool) -> None:
        """To the gradient of the window."""
        accumulated = self._accumulated[name]
        (accumulated.assign if first else accumulated.assign_add)(gradient)

    def _run_deferred(self, *, last: bool) -> None:
        """The rest of the backward of all micro-batches that wait for it, as of one with the sequences of all."""
        key = (len(self._deferred), self._first_backward, last)
        if key not in self._backward:
            count, first, _ = key
            self._backward[key] = tf.function(
                lambda deferred: self._backward_graph(deferred, first=first, last=last),
                input_signature=([self._deferred_specs] * count,),
            )
        loss = self._backward[key](self._deferred)
        self._deferred.clear()
        self._first_backward = False
        if last:
            self._window_loss = loss

    def _backward_graph(self, deferred: list[Deferred], *, first: bool, last: bool) -> tf.Tensor:
        """Layer by layer from above: with `last`, what is complete travels while the layers below are at work.

        Returns the loss of the window so far; with `last`, of all ranks.
        """
        reduce = self._reduce if last and self.reduces else lambda _: []
        inputs_TB = tf.concat([micro_batch.inputs_TB for micro_batch in deferred], 1)
        masks = [tf.concat(of_place, 1) for of_place in zip(*(micro_batch.masks for micro_batch in deferred), strict=True)]
        self._note_touched(inputs_TB, first)
        gradient, loss = self._output_backward(deferred, first)
        loss = self._loss_sum.assign(loss if first else self._loss_sum + loss)
        if last and self.reduces:
            loss = hvd.allreduce(loss, name="loss", op=hvd.Sum, process_set=self._data_set)
        on_the_wire = reduce([name for name in self._weights if name.startswith("output_")])
        for layer in reversed(range(self.model.layers)):
            # Reductions leave in this order, before the processor is taken, and no layer takes memory before its turn.
            with tf.control_dependencies([*on_the_wire, gradient]):
                gradient = self._drop(gradient, masks, layer + 1)
                tape = side_by_side([micro_batch.tapes[layer] for micro_batch in deferred])
                gradient, d_kernels = backward(tape, self._kernels(layer), gradient)
            for name, d_kernel in zip(_layer_names(layer), d_kernels, strict=True):
                self._add(name, d_kernel, first)
            on_the_wire = reduce(_layer_names(layer))
        rows = tf.IndexedSlices(self._drop(gradient, masks, 0), inputs_TB)
        if first and not self.model.tie_embedding:
            self._begin("embedding")
        self._accumulated["embedding"].scatter_add(rows)
        reduce(["embedding"])
        return loss

    def _note_touched(self, inputs_TB: tf.Tensor, first: bool) -> None:
        """1 for each row of the embedding that the window has looked up so far."""
        if self._touched_V is None:
            return
        if first:
            self._touched_V.assign(tf.zeros_like(self._touched_V))
        indices = tf.reshape(inputs_TB, (-1,))
        self._touched_V.scatter_update(tf.IndexedSlices(tf.ones_like(indices, tf.float16), indices))

    def _output_backward(self, deferred: list[Deferred], first: bool) -> tuple[tf.Tensor, tf.Tensor]:
        """Cross-entropy and the output layer, chunk by chunk: gradient by the outputs [T, B, H], sum of losses (float64)."""
        outputs_TBH = tf.concat([micro_batch.outputs_TBH for micro_batch in deferred], 1)
        outputs_NH = self._tokens(outputs_TBH)
        targets_N = tf.reshape(tf.concat([micro_batch.targets_TB for micro_batch in deferred], 1), (-1,))
        weights = [tf.fill(tf.shape(micro_batch.inputs_TB), micro_batch.weight) for micro_batch in deferred]
        weights_N = tf.reshape(tf.concat(weights, 1), (-1,))
        kernel, bias = self._accumulated[self._output_kernel], self._accumulated["output_bias"]
        if first:
            self._begin(self._output_kernel)
            self._begin("output_bias")

        def chunk(index: tf.Tensor, loss: tf.Tensor, gradients: tf.TensorArray) -> tuple[tf.Tensor, tf.Tensor, tf.TensorArray]:
            here = slice(index * CHUNK, (index + 1) * CHUNK)
            losses, by_logits, counted = self._cross_entropy(outputs_NH[here], targets_N[here])
            # Weights of tokens go to the factors with H columns instead of the one with V.
            weights = (counted * weights_N[here])[:, None]
            kernel.assign_add(tf.matmul(by_logits, outputs_NH[here] * weights, transpose_a=True))
            bias.assign_add(tf.matmul(weights, by_logits, transpose_a=True)[0])
            gradient_NH = tf.matmul(by_logits, self._weights[self._output_kernel]) * weights
            return index + 1, loss + tf.cast(tf.reduce_sum(losses), tf.float64), gradients.write(index, gradient_NH)

        chunks = -(-tf.shape(outputs_NH)[0] // CHUNK)
        parts = tf.TensorArray(tf.float32, chunks, infer_shape=False, element_shape=(None, self.model.hidden_size))
        zero = tf.zeros((), tf.float64)
        _, loss, parts = tf.while_loop(lambda index, *_: index < chunks, chunk, (0, zero, parts), parallel_iterations=1)
        return tf.reshape(parts.concat(), tf.shape(outputs_TBH)), loss

    def _reduce(self, names: Sequence[str]) -> list[tf.Tensor]:
        """Sum the gradients of the window over the data group; returns what is sent. Collective."""
        sent = []
        for name in names:
            accumulated = self._accumulated[name]
            if name == "embedding" and self._touched_V is not None:
                # All rows that no rank has touched are zero everywhere.
                touched_V = hvd.allreduce(self._touched_V, name="touched_rows", op=hvd.Sum, process_set=self._data_set)
                rows = tf.where(touched_V > 0)[:, 0]
                wire, context = self._compression.compress(tf.gather(accumulated, rows))
                accumulated.scatter_update(tf.IndexedSlices(self._all_reduce_wire(name, wire, context), rows))
            else:
                wire, context = self._compression.compress(self._take(name))
                accumulated.assign(self._all_reduce_wire(name, wire, context))
            sent.append(wire)
        return sent

    def _all_reduce_wire(self, name: str, wire: tf.Tensor, context: tf.DType | None) -> tf.Tensor:
        total = hvd.allreduce(wire, name=f"gradient.{name}", op=self._reduction, process_set=self._data_set)
        return self._compression.decompress(total, context)

    def _apply_graph(
        self, learning_rate: tf.Tensor, epsilon: tf.Tensor, clip: tf.Tensor, unscale: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Update weights and moments if the gradient is finite; returns its norm and whether it is."""
        norm = tf.linalg.global_norm(list(self._accumulated.values())) * unscale
        finite = tf.math.is_finite(norm)
        if finite:
            factor = unscale * tf.minimum(1.0, clip / norm)
            updated: list[tf.Operation] = []
            for name, variable in self._weights.items():
                # One after the other: a product that cannot take the gradient's memory is the only one then.
                with tf.control_dependencies(updated):
                    updated = [self._update(name, variable, self._take(name) * factor, learning_rate, epsilon)]
        return norm, finite

    def _update(
        self, name: str, variable: tf.Variable, gradient: tf.Tensor, learning_rate: tf.Tensor, epsilon: tf.Tensor
    ) -> tf.Operation:
        handle, moments = variable.handle, {key: v.handle for key, v in self._moments.items() if key.endswith(f"/{name}")}
        if self.optimizer.optimizer == "adam":
            # The kernel's own bias correction is float32 and puts epsilon inside; ours is in learning_rate and epsilon.
            return tf.raw_ops.ResourceApplyAdam(
                var=handle,
                m=moments[f"first/{name}"],
                v=moments[f"second/{name}"],
                beta1_power=0.0,
                beta2_power=0.0,
                lr=learning_rate,
                beta1=self.optimizer.beta1,
                beta2=self.optimizer.beta2,
                epsilon=epsilon,
                grad=gradient,
            )
        if moments:
            return tf.raw_ops.ResourceApplyMomentum(
                var=handle, accum=moments[f"momentum/{name}"], lr=learning_rate, grad=gradient, momentum=self.optimizer.momentum
            )
        return tf.raw_ops.ResourceApplyGradientDescent(var=handle, alpha=learning_rate, delta=gradient)

    def load_weights(self, weights: Mapping[str, Array]) -> None:
        check_weights(weights, self.model)
        for name, variable in self._weights.items():
            variable.assign(weights[name])

    def weights(self, *, copy: bool = True) -> Weights:
        return _to_numpy(self._weights, copy=copy)

    def load_optimizer_state(self, state: OptimizerState) -> None:
        if set(state.moments) != set(self._moments):
            raise CheckpointError(f"the optimizer state does not fit {self.optimizer.optimizer}: it is of another optimizer")
        for name, variable in self._moments.items():
            variable.assign(state.moments[name])
        self._applied_steps = state.applied_steps

    def optimizer_state(self, *, copy: bool = True) -> OptimizerState:
        return OptimizerState(self._applied_steps, _to_numpy(self._moments, copy=copy))

    def broadcast_state(self) -> None:
        if not self.reduces:
            return
        steps = hvd.broadcast(tf.constant(self._applied_steps), self._root, name="state.applied_steps", process_set=self._data_set)
        self._applied_steps = int(steps)
        named = dict(self._weights)
        if self._applied_steps:
            named |= self._moments
        else:
            # Two thirds of all that would travel, and nothing but zeros.
            for moment in self._moments.values():
                moment.assign(tf.zeros_like(moment))
        for name, variable in named.items():
            variable.assign(hvd.broadcast(variable, self._root, name=f"state.{name}", process_set=self._data_set))

    def zero_state(self, batch_size: int) -> State:
        zeros = tf.zeros((batch_size, self.model.hidden_size))
        return [(zeros, zeros) for _ in range(self.model.layers)]

    def state_to_numpy(self, state: State) -> NDArray[np.float32]:
        return np.stack([np.stack([tensor.numpy() for tensor in layer]) for layer in state])

    def state_from_numpy(self, state_L2BH: NDArray[np.float32]) -> State:
        return [(tf.constant(h), tf.constant(c)) for h, c in state_L2BH]

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
        masks = [tf.constant(mask) for mask in dropout_masks]
        if self._deferred and self._deferred[0].inputs_TB.shape != inputs_TB.shape:
            self._run_deferred(last=False)
        state, deferred = self._forward_to_wait(inputs_TB, targets_TB, state, weight, masks)
        self._deferred.append(deferred)
        if last or not defer:
            self._run_deferred(last=last)
        return state

    def step(self, *, learning_rate: float, clip: float | None, unscale: float) -> StepResult:
        assert self._window_loss is not None, "step() needs an accumulate(..., last=True) before it"
        epsilon = self.optimizer.epsilon
        if self.optimizer.optimizer == "adam":
            t = self._applied_steps + 1
            correction = math.sqrt(1.0 - self.optimizer.beta2**t)
            learning_rate *= correction / (1.0 - self.optimizer.beta1**t)
            epsilon *= correction
        norm, finite = self._apply(learning_rate, epsilon, math.inf if clip is None else clip, unscale)
        applied = bool(finite)
        self._applied_steps += applied
        result = StepResult(float(self._window_loss), float(norm), applied)
        self._begin_window()
        return result

    def gradients(self) -> Weights:
        if self._deferred:
            self._run_deferred(last=False)
        return {} if self._first_backward else _to_numpy(self._accumulated)

    def begin_dynamic_evaluation(self, rates: Mapping[str, Array], decays: Mapping[str, Array]) -> None:
        remembered = {name: tf.constant(weight) for name, weight in self.weights().items()}
        rates = {name: tf.constant(rate) for name, rate in rates.items()}
        decays = {name: tf.constant(decay) for name, decay in decays.items()}

        def step() -> None:
            for name, variable in self._weights.items():
                variable.assign_add(decays[name] * (remembered[name] - variable) - rates[name] * self._accumulated[name])

        self._dynamic_step = tf.function(step)

    def dynamic_step(self) -> float:
        assert self._window_loss is not None, "dynamic_step() needs an accumulate(..., last=True) before it"
        self._dynamic_step()
        loss_sum = float(self._window_loss)
        self._begin_window()
        return loss_sum

    def evaluate(self, inputs_TB: NDArray[np.int32], targets_TB: NDArray[np.int32], state: State) -> Evaluated:
        losses, outputs_TBH, state = self._evaluate(inputs_TB, targets_TB, state)
        return Evaluated(losses.numpy().reshape(inputs_TB.shape), outputs_TBH.numpy(), state)

    def logits(self, inputs_TB: NDArray[np.int32], state: State) -> tuple[NDArray[np.float32], State]:
        logits, state = self._logits(inputs_TB, state)
        return logits.numpy().reshape(*inputs_TB.shape, -1), state


def _layer_names(layer: int) -> list[str]:
    """As in hvd_lm.model.weights, in the order of `Kernels`."""
    return [f"lstm.{layer}.{kind}" for kind in ("input_kernel", "recurrent_kernel", "bias")]


def _to_numpy(variables: Mapping[str, tf.Variable], *, copy: bool = True) -> Weights:
    if copy:
        return {name: variable.numpy() for name, variable in variables.items()}
    # Read-only, and never changed: an update finds the buffer in use and takes another one.
    return {name: np.asarray(memoryview(variable.read_value())) for name, variable in variables.items()}
