"""The PyTorch adapter: torch modules, autograd and optimizers, gradients through horovod.torch.

Shapes: T time, B sequences of this rank, V vocabulary, E embedding, H units.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import horovod.torch as hvd
import numpy as np
import torch
from horovod.common.exceptions import HorovodInternalError
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from hvd_lm.adapters.base import Adapter, Evaluated, OptimizerState, State, StepResult
from hvd_lm.adapters.pytorch.memory import Weight, first_gradient, lasting
from hvd_lm.adapters.pytorch.products import product
from hvd_lm.adapters.pytorch.stages.lstm import lstm_layer
from hvd_lm.adapters.pytorch.stages.output import accumulate_cross_entropy
from hvd_lm.config import CommunicationConfig, ModelConfig, OptimizerConfig
from hvd_lm.data.streams import IGNORED
from hvd_lm.errors import CheckpointError
from hvd_lm.model.noise import keep_probability
from hvd_lm.model.weights import Array, Weights, check_weights

# Canonical moment -> key in the state of torch's optimizer.
_MOMENTS = {"adam": {"first": "exp_avg", "second": "exp_avg_sq"}, "sgd": {"momentum": "momentum_buffer"}}


@dataclass
class Deferred:
    """A micro-batch whose forward has got to the outputs of the last layer, and that waits for its backward."""

    inputs_TB: Tensor
    targets_TB: Tensor
    weight: float
    masks: list[Tensor]
    outputs_TBH: Tensor
    """After dropout."""


class TouchedRows:
    """Rows of the embedding that the inputs of a window name, on any rank: all other rows of its gradient are zero everywhere."""

    def __init__(self, rows: int, device: torch.device, process_set: hvd.ProcessSet) -> None:
        # Halves are the smallest numbers that Horovod reduces in both frameworks; any number above 0 means touched.
        self._touched_V = torch.zeros(rows, dtype=torch.float16, device=device)
        self._process_set = process_set
        self._handle: int | None = None

    def note(self, inputs_TB: Tensor) -> None:
        self._touched_V[inputs_TB.flatten()] = 1

    def start_union(self) -> None:
        """Collective, and long done when the embedding's gradient, the last one, is there."""
        self._handle = hvd.allreduce_async_(self._touched_V, name="touched_rows", op=hvd.Sum, process_set=self._process_set)

    def finish_union(self) -> Tensor:
        """The rows, ascending, the same on all ranks; and a new window begins."""
        assert self._handle is not None
        hvd.synchronize(self._handle)
        rows = self._touched_V.nonzero().flatten()
        self._touched_V.zero_()
        return rows


@dataclass
class _Reduction:
    """One gradient on its way."""

    gradient: Tensor
    handle: int
    wire: Tensor
    rows: Tensor | None


_BLOCK = 1 << 18
"""Values that are cast at a time; as halves and as floats they fit a cache."""


def to_halves_in_place(gradient: Tensor) -> Tensor:
    """`gradient` in float16, in the first half of its own memory: fresh memory would cost three times as much as the cast."""
    values = gradient.view(-1)
    halves = values.view(torch.float16)[: len(values)]
    for start in range(0, len(values), _BLOCK):
        halves[start : start + _BLOCK] = values[start : start + _BLOCK].half()
    return halves


def from_halves_in_place(gradient: Tensor) -> None:
    """The inverse of `to_halves_in_place`; from the end, where no half is overwritten that is still to be read."""
    values = gradient.view(-1)
    halves = values.view(torch.float16)[: len(values)]
    for start in reversed(range(0, len(values), _BLOCK)):
        values[start : start + _BLOCK] = halves[start : start + _BLOCK].float()


class GradientReducer:
    """Starts Horovod's all-reduce of each gradient when the last backward of a window has finished it.

    Horovod's DistributedOptimizer does the same by counting backwards; here the loop says which one is the last, so that a
    short window needs no other counter, Adasum takes the same way, and clipping sits between reduction and update.
    Of an embedding (`looked_up`) only those rows travel that the window touched on some rank.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        looked_up: str | None,
        communication: CommunicationConfig,
        process_set: hvd.ProcessSet,
    ) -> None:
        self._names = {parameter: name for name, parameter in parameters.items()}
        self._process_set = process_set
        self._op = hvd.Adasum if communication.reduction == "adasum" else hvd.Sum
        self.pending: list[_Reduction] = []
        """In the order in which they started."""
        self._looked_up = looked_up
        self._touched: TouchedRows | None = None
        if looked_up:
            self._touched = TouchedRows(len(parameters[looked_up]), parameters[looked_up].device, process_set)
        self._fp16 = communication.compression == "fp16"

    def note_inputs(self, inputs_TB: Tensor) -> None:
        """Of each micro-batch of a window."""
        if self._touched:
            self._touched.note(inputs_TB)

    def inputs_complete(self) -> None:
        """All micro-batches of the window are noted. Collective."""
        if self._touched:
            self._touched.start_union()

    def start(self, parameter: nn.Parameter) -> None:
        """The gradient of the window is complete. Collective."""
        name, gradient = self._names[parameter], parameter.grad
        assert gradient is not None
        rows = None
        if self._touched and name == self._looked_up:
            rows = self._touched.finish_union()
            wire = gradient.index_select(0, rows)
            wire = wire.half() if self._fp16 else wire
        else:
            wire = to_halves_in_place(gradient) if self._fp16 else gradient
        handle = hvd.allreduce_async_(wire, name=f"gradient.{name}", op=self._op, process_set=self._process_set)
        self.pending.append(_Reduction(gradient, handle, wire, rows))

    def finish(self) -> Iterator[Tensor]:
        """The gradients that are on their way, one by one as they come in; what is done with one hides what the next one takes."""
        for reduction in self.pending:
            hvd.synchronize(reduction.handle)
            gradient, wire = reduction.gradient, reduction.wire
            if reduction.rows is not None:
                gradient.index_copy_(0, reduction.rows, wire.to(gradient.dtype))
            elif self._fp16:
                from_halves_in_place(gradient)
            yield gradient
        self.pending.clear()


class PyTorchAdapter(Adapter):
    """torch modules and fused optimizers; on the GPU of the local rank where there is one."""

    framework = "torch"
    horovod = hvd
    communication_errors = (HorovodInternalError,)

    # --- the job -----------------------------------------------------------------------------------------

    def _set_threads(self, threads: int) -> None:
        torch.set_num_threads(threads)

    def _make_deterministic(self) -> None:
        torch.use_deterministic_algorithms(True)

    def _choose_device(self, local_rank: int) -> None:
        self.device = torch.device("cpu")
        if torch.cuda.is_available():
            self.device = torch.device("cuda", local_rank)
            torch.cuda.set_device(self.device)

    def _framework_summary(self) -> str:
        return f"torch {torch.__version__} on {self.device}"

    def all_reduce(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        if not self.reduces:
            return values.copy()
        total: Tensor = hvd.allreduce(torch.from_numpy(values), name="metrics", op=hvd.Sum, process_set=self._data_set)
        return total.numpy()

    # --- the model ---------------------------------------------------------------------------------------

    def build(self, model: ModelConfig, optimizer: OptimizerConfig) -> None:
        self.model, self.optimizer = model, optimizer
        assert model.vocabulary_size is not None
        embedding = Weight(model.vocabulary_size, model.embedding_size, device=self.device)
        widths = [model.embedding_size, *[model.hidden_size] * (model.layers - 1)]
        self._layers = [lstm_layer(width, model.hidden_size, self.device) for width in widths]
        self._parameters: dict[str, nn.Parameter] = {"embedding": embedding}
        for index, layer in enumerate(self._layers):
            self._parameters[f"lstm.{index}.input_kernel"] = layer.input_kernel
            self._parameters[f"lstm.{index}.recurrent_kernel"] = layer.recurrent_kernel
            self._parameters[f"lstm.{index}.bias"] = layer.bias
        if not model.tie_embedding:
            self._parameters["output_kernel"] = Weight(model.vocabulary_size, model.hidden_size, device=self.device)
        self._parameters["output_bias"] = Weight(model.vocabulary_size, device=self.device)
        self._output_kernel = self._parameters["embedding" if model.tie_embedding else "output_kernel"]
        self._keep_probability = keep_probability(model.dropout)
        self._deferred: list[Deferred] = []
        self._optimizer = self._make_optimizer(optimizer)
        self._applied_steps = 0
        self._moments = {
            f"{moment}/{name}": lasting(*parameter.shape, device=self.device).zero_()
            for moment in self._moment_keys()
            for name, parameter in self._parameters.items()
        }
        self._link_moments()
        self._reducer: GradientReducer | None = None
        if self.reduces:
            # A tied embedding is the output kernel too: its gradient has no zero rows.
            looked_up = None if model.tie_embedding else "embedding"
            self._reducer = GradientReducer(self._parameters, looked_up, self.communication, self._data_set)
        self._loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        self._loss_handle: int | None = None

    def _make_optimizer(self, config: OptimizerConfig) -> torch.optim.Optimizer:
        parameters = self._parameters.values()
        if config.optimizer == "adam":
            betas = (config.beta1, config.beta2)
            return torch.optim.Adam(parameters, config.learning_rate, betas, config.epsilon, fused=True)
        return torch.optim.SGD(parameters, config.learning_rate, config.momentum, fused=True)

    def _moment_keys(self) -> dict[str, str]:
        if self.optimizer.optimizer == "sgd" and self.optimizer.momentum == 0:
            return {}
        return _MOMENTS[self.optimizer.optimizer]

    def _link_moments(self) -> None:
        """Make the optimizer work on `self._moments`, which exist from the start so that every rank can receive them."""
        for name, parameter in self._parameters.items():
            state: dict[str, Tensor] = {key: self._moments[f"{moment}/{name}"] for moment, key in self._moment_keys().items()}
            if self.optimizer.optimizer == "adam":
                state["step"] = torch.tensor(float(self._applied_steps), device=self.device)
            self._optimizer.state[parameter] = state

    def load_weights(self, weights: Mapping[str, Array]) -> None:
        check_weights(weights, self.model)
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(torch.from_numpy(np.ascontiguousarray(weights[name])))
        self._weights_changed()

    def _weights_changed(self) -> None:
        for layer in self._layers:
            layer.weights_changed()

    def weights(self, *, copy: bool = True) -> Weights:
        return {name: _to_numpy(parameter, copy=copy) for name, parameter in self._parameters.items()}

    def load_optimizer_state(self, state: OptimizerState) -> None:
        if set(state.moments) != set(self._moments):
            raise CheckpointError(f"the optimizer state does not fit {self.optimizer.optimizer}: it is of another optimizer")
        for name, moment in self._moments.items():
            moment.copy_(torch.from_numpy(np.ascontiguousarray(state.moments[name])))
        self._applied_steps = state.applied_steps
        self._link_moments()

    def optimizer_state(self, *, copy: bool = True) -> OptimizerState:
        moments = {name: _to_numpy(moment, copy=copy) for name, moment in self._moments.items()}
        return OptimizerState(self._applied_steps, moments)

    def broadcast_state(self) -> None:
        if not self.reduces:
            return
        self._applied_steps = int(
            hvd.broadcast(torch.tensor(self._applied_steps), self._root, name="state.applied_steps", process_set=self._data_set)
        )
        named = {name: parameter.data for name, parameter in self._parameters.items()}
        if self._applied_steps:
            named |= self._moments
        else:
            # Two thirds of all that would travel, and nothing but zeros.
            for moment in self._moments.values():
                moment.zero_()
        handles = [hvd.broadcast_async_(t, self._root, name=f"state.{k}", process_set=self._data_set) for k, t in named.items()]
        for handle in handles:
            hvd.synchronize(handle)
        self._link_moments()
        self._weights_changed()

    def zero_state(self, batch_size: int) -> State:
        def zeros() -> Tensor:
            return torch.zeros(batch_size, self.model.hidden_size, device=self.device)

        return [(zeros(), zeros()) for _ in range(self.model.layers)]

    def state_to_numpy(self, state: State) -> NDArray[np.float32]:
        return np.stack([np.stack([_to_numpy(tensor) for tensor in layer]) for layer in state])

    def state_from_numpy(self, state_L2BH: NDArray[np.float32]) -> State:
        return [(h, c) for h, c in torch.tensor(state_L2BH, device=self.device)]

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
        if self._deferred and self._deferred[0].inputs_TB.shape != inputs_TB.shape:
            self._run_deferred(last=False)
        masks = [torch.from_numpy(mask).to(self.device) for mask in dropout_masks]
        inputs, targets = self._indices(inputs_TB), self._indices(targets_TB)
        outputs_TBH, state = self._forward(inputs, state, masks, keep=1 if last else 1 + defer)
        self._deferred.append(Deferred(inputs, targets, weight, masks, outputs_TBH))
        if self._reducer:
            self._reducer.note_inputs(inputs)
        if last or not defer:
            self._run_deferred(last=last)
        return state

    @torch.no_grad()
    def _forward(self, inputs_TB: Tensor, state: State, masks: Sequence[Tensor] = (), *, keep: int = 0) -> tuple[Tensor, State]:
        """Outputs of the last layer after dropout [T, B, H], and the state after."""
        activations = self._drop(functional.embedding(inputs_TB, self._parameters["embedding"]), masks, 0)
        after = []
        for index, (layer, layer_state) in enumerate(zip(self._layers, state, strict=True)):
            outputs, layer_after = layer.forward(activations, layer_state, keep=keep)
            activations = self._drop(outputs, masks, index + 1)
            after.append(layer_after)
        return activations, after

    def _drop(self, activations: Tensor, masks: Sequence[Tensor], place: int) -> Tensor:
        return activations * masks[place] / self._keep_probability if masks else activations

    def _logits(self, outputs_TBH: Tensor) -> Tensor:
        """[T*B, V]"""
        return product(outputs_TBH.flatten(0, 1), self._output_kernel, bias_N=self._parameters["output_bias"])

    @torch.no_grad()
    def _run_deferred(self, *, last: bool) -> None:
        """The backward of all micro-batches that wait, layer by layer from above.

        With `last`, what is complete travels while the layers below are at work.
        """
        reducer = self._reducer if last else None
        if reducer:
            reducer.inputs_complete()
        complete = reducer.start if reducer else _ignore
        self._weights_changed()  # what the forwards derived from them leaves room for logits
        gradients = self._output_backward()
        if reducer:
            self._loss_handle = hvd.allreduce_async_(self._loss_sum, name="loss", op=hvd.Sum, process_set=self._data_set)
        if not self.model.tie_embedding:
            complete(self._output_kernel)
        complete(self._parameters["output_bias"])
        for index in reversed(range(self.model.layers)):
            gradients = self._layers[index].backward(self._drop_all(gradients, index + 1), complete)
        self._embedding_backward(self._drop_all(gradients, 0))
        complete(self._parameters["embedding"])
        self._deferred.clear()

    def _drop_all(self, gradients: Tensor, place: int) -> Tensor:
        """As `_drop`, of all micro-batches [K, T, B, width]."""
        masks = [micro_batch.masks for micro_batch in self._deferred]
        return self._drop(gradients, [torch.stack(of_place) for of_place in zip(*masks, strict=True)], place)

    def _output_backward(self) -> Tensor:
        """Cross-entropy and the output layer; gradient by the outputs of the last layer [K, T, B, H]."""
        targets = [micro_batch.targets_TB.flatten() for micro_batch in self._deferred]
        weights = [
            target.new_full((), micro_batch.weight, dtype=torch.float32).expand(len(target))
            for target, micro_batch in zip(targets, self._deferred, strict=True)
        ]
        loss, gradients_NH = accumulate_cross_entropy(
            torch.cat([micro_batch.outputs_TBH.flatten(0, 1) for micro_batch in self._deferred]),
            self._output_kernel,
            self._parameters["output_bias"],
            torch.cat(targets),
            torch.cat(weights),
            ignored=IGNORED,
        )
        self._loss_sum += loss
        return gradients_NH.view(len(targets), *self._deferred[0].inputs_TB.shape, -1)

    def _embedding_backward(self, gradients_KTBE: Tensor) -> None:
        embedding = self._parameters["embedding"]
        total = first_gradient(embedding).zero_() if embedding.grad is None else embedding.grad
        for micro_batch, gradient_TBE in zip(self._deferred, gradients_KTBE, strict=True):
            total.index_add_(0, micro_batch.inputs_TB.flatten(), gradient_TBE.flatten(0, 1))

    def _indices(self, array: NDArray[np.int32]) -> Tensor:
        return torch.from_numpy(array).to(self.device, torch.int64)

    def step(self, *, learning_rate: float, clip: float | None, unscale: float) -> StepResult:
        if self._loss_handle is not None:
            hvd.synchronize(self._loss_handle)
            self._loss_handle = None
        norm = float(_global_norm(self._complete_gradients())) * unscale
        applied = bool(np.isfinite(norm))
        if applied:
            factor = unscale if clip is None or norm <= clip else unscale * clip / norm
            if factor != 1.0:
                torch._foreach_mul_(self._gradients(), factor)
            for group in self._optimizer.param_groups:
                group["lr"] = learning_rate
            self._weights_changed()
            self._optimizer.step()
            self._applied_steps += 1
        self._optimizer.zero_grad(set_to_none=True)
        result = StepResult(float(self._loss_sum), norm, applied)
        self._loss_sum = torch.zeros_like(self._loss_sum)
        return result

    def _gradients(self) -> list[Tensor]:
        return [parameter.grad for parameter in self._parameters.values() if parameter.grad is not None]

    def _complete_gradients(self) -> Iterator[Tensor]:
        """Of the window, each as soon as it is reduced; all at once where they are already."""
        if self._reducer and self._reducer.pending:
            return self._reducer.finish()
        return iter(self._gradients())

    def gradients(self) -> Weights:
        if self._deferred:
            self._run_deferred(last=False)
        for _ in self._complete_gradients():
            pass
        return {name: _to_numpy(parameter.grad) for name, parameter in self._parameters.items() if parameter.grad is not None}

    def begin_dynamic_evaluation(self, rates: Mapping[str, Array], decays: Mapping[str, Array]) -> None:
        self._dynamic = [
            (parameter, parameter.detach().clone(), self._tensor(rates[name]), self._tensor(decays[name]))
            for name, parameter in self._parameters.items()
        ]

    def _tensor(self, array: Array) -> Tensor:
        return torch.tensor(array, device=self.device)

    @torch.no_grad()
    def dynamic_step(self) -> float:
        self._weights_changed()
        for parameter, remembered, rate, decay in self._dynamic:
            assert parameter.grad is not None
            pull = (remembered - parameter).mul_(decay)
            parameter.add_(pull.addcmul_(rate, parameter.grad, value=-1))
        self._optimizer.zero_grad(set_to_none=True)
        loss_sum = float(self._loss_sum)
        self._loss_sum.zero_()
        return loss_sum

    @torch.no_grad()
    def evaluate(self, inputs_TB: NDArray[np.int32], targets_TB: NDArray[np.int32], state: State) -> Evaluated:
        outputs_TBH, state = self._forward(self._indices(inputs_TB), state)
        logits = self._logits(outputs_TBH)
        losses = functional.cross_entropy(logits, self._indices(targets_TB).flatten(), ignore_index=IGNORED, reduction="none")
        return Evaluated(_to_numpy(losses).reshape(inputs_TB.shape), _to_numpy(outputs_TBH), state)

    @torch.no_grad()
    def logits(self, inputs_TB: NDArray[np.int32], state: State) -> tuple[NDArray[np.float32], State]:
        outputs_TBH, state = self._forward(self._indices(inputs_TB), state)
        return _to_numpy(self._logits(outputs_TBH)).reshape(*inputs_TB.shape, -1), state


def _ignore(_: nn.Parameter) -> None:
    """Of a backward after which nothing travels."""


def _global_norm(tensors: Iterable[Tensor]) -> Tensor:
    """Row by row, then in float64: on a CPU the norm of 10^7 values summed in one go is off by 1e-3."""
    norms = [torch.linalg.vector_norm(torch.linalg.vector_norm(tensor, dim=-1), dtype=torch.float64) for tensor in tensors]
    total: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    return total


def _to_numpy(tensor: Tensor, *, copy: bool = True) -> Array:
    array: Array = tensor.detach().cpu().numpy()
    return array.copy() if copy else array
