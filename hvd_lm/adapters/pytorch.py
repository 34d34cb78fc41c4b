"""The PyTorch adapter: torch modules, autograd and optimizers, gradients through horovod.torch.

Shapes: T time, B sequences of this rank, V vocabulary, E embedding, H units.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import horovod.torch as hvd
import numpy as np
import torch
from horovod.common.exceptions import HorovodInternalError
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from hvd_lm.adapters.base import Adapter, Evaluated, OptimizerState, State, StepResult
from hvd_lm.adapters.pytorch_cross_entropy import accumulate_cross_entropy
from hvd_lm.config import CommunicationConfig, ModelConfig, OptimizerConfig
from hvd_lm.data.streams import IGNORED
from hvd_lm.dropout import keep_probability
from hvd_lm.errors import CheckpointError
from hvd_lm.weights import Array, Weights, check_weights

# Canonical moment -> key in the state of torch's optimizer.
_MOMENTS = {"adam": {"first": "exp_avg", "second": "exp_avg_sq"}, "sgd": {"momentum": "momentum_buffer"}}


class LstmLanguageModel(nn.Module):
    """Embedding -> LSTM layers -> Linear; one nn.LSTM a layer, so that dropout masks can come from outside."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.vocabulary_size is not None
        self.embedding = nn.Embedding(config.vocabulary_size, config.embedding_size)
        widths = [config.embedding_size] + [config.hidden_size] * (config.layers - 1)
        self.layers = [nn.LSTM(width, config.hidden_size) for width in widths]
        self.lstm = nn.ModuleList(self.layers)
        self.output = nn.Linear(config.hidden_size, config.vocabulary_size)
        if config.tie_embedding:
            self.output.weight = self.embedding.weight
        self.keep_probability = keep_probability(config.dropout)
        for layer in self.layers:
            # The second bias would double the step of the first under Adam: fixed at zero, not trained.
            fixed = layer.get_parameter("bias_hh_l0")
            nn.init.zeros_(fixed)
            fixed.requires_grad_(False)

    def canonical_parameters(self, tied: bool) -> dict[str, nn.Parameter]:
        parameters = {"embedding": self.embedding.get_parameter("weight")}
        for index, layer in enumerate(self.layers):
            parameters[f"lstm.{index}.input_kernel"] = layer.get_parameter("weight_ih_l0")
            parameters[f"lstm.{index}.recurrent_kernel"] = layer.get_parameter("weight_hh_l0")
            parameters[f"lstm.{index}.bias"] = layer.get_parameter("bias_ih_l0")
        if not tied:
            parameters["output_kernel"] = self.output.get_parameter("weight")
        parameters["output_bias"] = self.output.get_parameter("bias")
        return parameters

    def forward(self, inputs_TB: Tensor, state: State, masks: Sequence[Tensor] = ()) -> tuple[Tensor, State]:
        """Outputs of the last layer [T, B, H], and the state after."""
        activations = self._drop(self.embedding(inputs_TB), masks, 0)
        after = []
        for index, (layer, layer_state) in enumerate(zip(self.layers, state, strict=True)):
            activations, layer_after = layer(activations, layer_state)
            activations = self._drop(activations, masks, index + 1)
            after.append((layer_after[0].detach(), layer_after[1].detach()))
        return activations, after

    def logits(self, outputs_TBH: Tensor) -> Tensor:
        """Of the outputs of the last layer, [T*B, V]."""
        logits: Tensor = self.output(outputs_TBH.flatten(0, 1))
        return logits

    def _drop(self, activations: Tensor, masks: Sequence[Tensor], place: int) -> Tensor:
        return activations * masks[place] / self.keep_probability if masks else activations


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

    parameter: Tensor
    handle: int
    wire: Tensor
    rows: Tensor | None


class GradientReducer:
    """Starts Horovod's all-reduce of a gradient the moment the last backward of a window has finished it, autograd's or ours.

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
        self._armed = False
        self._process_set = process_set
        self._op = hvd.Adasum if communication.reduction == "adasum" else hvd.Sum
        self._halves = communication.compression == "fp16"
        self._pending: list[_Reduction] = []
        self._touched: TouchedRows | None = None
        self._starts: dict[str, Callable[[Tensor], None]] = {}
        for name, parameter in parameters.items():
            if name == looked_up:
                self._touched = TouchedRows(len(parameter), parameter.device, process_set)
            self._starts[name] = self._hook(f"gradient.{name}", parameter, self._touched if name == looked_up else None)
            parameter.register_post_accumulate_grad_hook(self._starts[name])  # type: ignore[no-untyped-call]

    def _hook(self, name: str, parameter: Tensor, touched: TouchedRows | None) -> Callable[[Tensor], None]:
        # Kept from window to window: the first touch of fresh memory takes three times as long as the cast.
        half = torch.empty_like(parameter, dtype=torch.float16) if self._halves else None

        def start(parameter: Tensor) -> None:
            if not self._armed:
                return
            gradient = parameter.grad
            assert gradient is not None
            rows = touched.finish_union() if touched else None
            values = gradient if rows is None else gradient.index_select(0, rows)
            wire = values if half is None else half[: len(values)].copy_(values)
            handle = hvd.allreduce_async_(wire, name=name, op=self._op, process_set=self._process_set)
            self._pending.append(_Reduction(parameter, handle, wire, rows))

        return start

    def note_inputs(self, inputs_TB: Tensor) -> None:
        """Before each backward of a window."""
        if self._touched:
            self._touched.note(inputs_TB)

    def arm(self) -> None:
        """Before the last backward of a window. Collective."""
        self._armed = True
        if self._touched:
            self._touched.start_union()

    def start(self, name: str, parameter: Tensor) -> None:
        """The gradient of a parameter that autograd does not see is there."""
        self._starts[name](parameter)

    def finish(self) -> None:
        """Wait for all reductions; the reduced gradients are in `parameter.grad` then."""
        for reduction in self._pending:
            hvd.synchronize(reduction.handle)
            gradient, wire = reduction.parameter.grad, reduction.wire
            assert gradient is not None
            if reduction.rows is not None:
                gradient.index_copy_(0, reduction.rows, wire.to(gradient.dtype))
            elif wire is not gradient:
                gradient.copy_(wire)
        self._pending.clear()
        self._armed = False


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
        self._module = LstmLanguageModel(model).to(self.device)
        self._parameters = self._module.canonical_parameters(model.tie_embedding)
        self._output_kernel = "embedding" if model.tie_embedding else "output_kernel"
        self._optimizer = self._make_optimizer(optimizer)
        self._applied_steps = 0
        self._moments = {
            f"{moment}/{name}": torch.zeros_like(parameter)
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

    def zero_state(self, batch_size: int) -> State:
        def zeros() -> Tensor:
            return torch.zeros(1, batch_size, self.model.hidden_size, device=self.device)

        return [(zeros(), zeros()) for _ in range(self.model.layers)]

    def state_to_numpy(self, state: State) -> NDArray[np.float32]:
        return np.stack([np.stack([_to_numpy(tensor)[0] for tensor in layer]) for layer in state])

    def state_from_numpy(self, state_L2BH: NDArray[np.float32]) -> State:
        tensors = torch.tensor(state_L2BH, device=self.device).unsqueeze(2)
        return [(h.contiguous(), c.contiguous()) for h, c in tensors]

    def accumulate(
        self,
        inputs_TB: NDArray[np.int32],
        targets_TB: NDArray[np.int32],
        state: State,
        *,
        weight: float,
        last: bool,
        dropout_masks: Sequence[NDArray[np.bool_]] = (),
    ) -> State:
        masks = [torch.from_numpy(mask).to(self.device) for mask in dropout_masks]
        inputs, targets = self._indices(inputs_TB), self._indices(targets_TB)
        if self._reducer:
            self._reducer.note_inputs(inputs)
            if last:
                self._reducer.arm()
        outputs_TBH, state = self._module(inputs, state, masks)
        kernel, bias = self._parameters[self._output_kernel], self._parameters["output_bias"]
        loss, gradients_NH = accumulate_cross_entropy(
            outputs_TBH.detach().flatten(0, 1), kernel, bias, targets.flatten(), weight=weight, ignored=IGNORED
        )
        self._loss_sum += loss
        if last and self._reducer:
            self._loss_handle = hvd.allreduce_async_(self._loss_sum, name="loss", op=hvd.Sum, process_set=self._data_set)
            self._reducer.start("output_bias", bias)
            if not self.model.tie_embedding:
                self._reducer.start("output_kernel", kernel)
        outputs_TBH.backward(gradients_NH.view_as(outputs_TBH))
        return state

    def _indices(self, array: NDArray[np.int32]) -> Tensor:
        return torch.from_numpy(array).to(self.device, torch.int64)

    def step(self, *, learning_rate: float, clip: float | None, unscale: float) -> StepResult:
        if self._loss_handle is not None:
            hvd.synchronize(self._loss_handle)
            self._loss_handle = None
        if self._reducer:
            self._reducer.finish()
        gradients = [parameter.grad for parameter in self._parameters.values() if parameter.grad is not None]
        norm = float(_global_norm(gradients)) * unscale
        applied = bool(np.isfinite(norm))
        if applied:
            factor = unscale if clip is None or norm <= clip else unscale * clip / norm
            if factor != 1.0:
                torch._foreach_mul_(gradients, factor)
            for group in self._optimizer.param_groups:
                group["lr"] = learning_rate
            self._optimizer.step()
            self._applied_steps += 1
        self._optimizer.zero_grad(set_to_none=True)
        result = StepResult(float(self._loss_sum), norm, applied)
        self._loss_sum = torch.zeros_like(self._loss_sum)
        return result

    def gradients(self) -> Weights:
        if self._reducer:
            self._reducer.finish()
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
        outputs_TBH, state = self._module(self._indices(inputs_TB), state)
        logits = self._module.logits(outputs_TBH)
        losses = functional.cross_entropy(logits, self._indices(targets_TB).flatten(), ignore_index=IGNORED, reduction="none")
        return Evaluated(_to_numpy(losses).reshape(inputs_TB.shape), _to_numpy(outputs_TBH), state)

    @torch.no_grad()
    def logits(self, inputs_TB: NDArray[np.int32], state: State) -> tuple[NDArray[np.float32], State]:
        outputs_TBH, state = self._module(self._indices(inputs_TB), state)
        return _to_numpy(self._module.logits(outputs_TBH)).reshape(*inputs_TB.shape, -1), state


def _global_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Row by row, then in float64: on a CPU the norm of 10^7 values summed in one go is off by 1e-3."""
    norms = [torch.linalg.vector_norm(torch.linalg.vector_norm(tensor, dim=-1), dtype=torch.float64) for tensor in tensors]
    total: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    return total


def _to_numpy(tensor: Tensor, *, copy: bool = True) -> Array:
    array: Array = tensor.detach().cpu().numpy()
    return array.copy() if copy else array
