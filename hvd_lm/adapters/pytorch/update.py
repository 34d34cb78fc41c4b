"""The update of an optimizer step, on moments of ours, which exist from the start: torch's fused optimizers, and Adagrad."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from hvd_lm.adapters.base import OptimizerState
from hvd_lm.adapters.pytorch.memory import lasting, to_numpy
from hvd_lm.config import OptimizerConfig
from hvd_lm.model.split import blocks

# Canonical moment -> key in the state of torch's optimizer.
_KEYS = {"first": "exp_avg", "second": "exp_avg_sq", "momentum": "momentum_buffer"}


class Update(ABC):
    """Of `weights`."""

    def __init__(self, config: OptimizerConfig, weights: Mapping[str, nn.Parameter]) -> None:
        self._config, self._weights = config, weights
        self.applied_steps = 0
        self.averaged_since: int | None = None
        """asgd: updates that had been applied when averages began."""
        self.moments = {
            f"{moment}/{name}": lasting(*weight.shape, device=weight.device).fill_(config.initial_moment)
            for moment in config.moments
            for name, weight in weights.items()
        }

    def link(self) -> None:  # noqa: B027 - most have nothing beside them
        """Take over `moments` and `applied_steps`, after they were set."""

    def begin(self) -> None:
        """Set the moments to what they are before the first step."""
        for moment in self.moments.values():
            moment.fill_(self._config.initial_moment)

    def state(self, *, copy: bool) -> OptimizerState:
        return OptimizerState(self.applied_steps, {name: to_numpy(moment, copy=copy) for name, moment in self.moments.items()})

    def apply(self, learning_rate: float, factor: float, rows: Mapping[str, Tensor]) -> None:
        """Of the gradients times `factor`. `rows`: by the name of a weight those that alone have one, if it keeps the others."""
        self._apply(learning_rate, factor, rows)
        self.applied_steps += 1

    @abstractmethod
    def _apply(self, learning_rate: float, factor: float, rows: Mapping[str, Tensor]) -> None: ...


class TorchUpdate(Update):
    """Adam, AdamW, or SGD with or without momentum, averaged or not; weight decay is a part of torch's kernels."""

    def __init__(self, config: OptimizerConfig, weights: Mapping[str, nn.Parameter]) -> None:
        super().__init__(config, weights)
        self._optimizer = self._make(config)
        self.link()

    def _make(self, config: OptimizerConfig) -> torch.optim.Optimizer:
        weights, decay = self._weights.values(), config.weight_decay
        if config.is_adam:
            kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
            betas = (config.beta1, config.beta2)
            return kind(weights, config.learning_rate, betas, config.epsilon, decay, fused=True)
        momentum = config.momentum if config.optimizer == "sgd" else 0.0
        return torch.optim.SGD(weights, config.learning_rate, momentum, weight_decay=decay, fused=True)

    def link(self) -> None:
        for name, weight in self._weights.items():
            kept = [moment for moment in self._config.moments if moment in _KEYS]
            state: dict[str, Tensor] = {_KEYS[moment]: self.moments[f"{moment}/{name}"] for moment in kept}
            if self._config.is_adam:
                state["step"] = torch.tensor(float(self.applied_steps), device=weight.device)
            self._optimizer.state[weight] = state

    def _apply(self, learning_rate: float, factor: float, rows: Mapping[str, Tensor]) -> None:
        assert not rows, "torch's optimizers update all rows"
        if factor != 1.0:
            torch._foreach_mul_([weight.grad for weight in self._weights.values() if weight.grad is not None], factor)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.step()
        if self.averaged_since is not None:
            share = 1.0 / (self.applied_steps + 1 - self.averaged_since)
            with torch.no_grad():
                for name, weight in self._weights.items():
                    self.moments[f"average/{name}"].lerp_(weight, share)


class Adagrad(Update):
    """Duchi et al. 2011, "Adaptive Subgradient Methods for Online Learning and Stochastic Optimization", JMLR 12, with

    accumulator += gradient^2;  weight -= rate * gradient / sqrt(accumulator)
    """

    @torch.no_grad()
    def _apply(self, learning_rate: float, factor: float, rows: Mapping[str, Tensor]) -> None:
        for name, weight in self._weights.items():
            gradient, accumulator = weight.grad, self.moments[f"accumulator/{name}"]
            assert gradient is not None
            if name in rows:
                at = rows[name]
                of_weight, of_accumulator = weight[at], accumulator[at]
                _adagrad(of_weight, of_accumulator, gradient[at].mul_(factor), learning_rate)
                weight.index_copy_(0, at, of_weight)
                accumulator.index_copy_(0, at, of_accumulator)
                continue
            # Block by block: what is computed on the way stays small.
            for block in blocks(range(len(weight)), weight.shape):
                here = slice(block.start, block.stop)
                _adagrad(weight[here], accumulator[here], gradient[here] * factor, learning_rate)


def _adagrad(weight: Tensor, accumulator: Tensor, gradient: Tensor, learning_rate: float) -> None:
    """In place."""
    accumulator.addcmul_(gradient, gradient)
    weight.addcdiv_(gradient, accumulator.sqrt(), value=-learning_rate)


def make_update(config: OptimizerConfig, weights: Mapping[str, nn.Parameter]) -> Update:
    """What `config` asks for."""
    return (Adagrad if config.optimizer == "adagrad" else TorchUpdate)(config, weights)


class DynamicUpdate:
    """Of dynamic evaluation: a plain step, and a pull back to the weights as they are when it is made."""

    def __init__(self, weights: Iterable[tuple[nn.Parameter, Tensor, Tensor]]) -> None:
        """Each with its rate and its decay, of its shape or one number."""
        self._weights = [(weight, weight.detach().clone(), rate, decay) for weight, rate, decay in weights]

    @torch.no_grad()
    def apply(self) -> None:
        for weight, remembered, rate, decay in self._weights:
            assert weight.grad is not None
            pull = (remembered - weight).mul_(decay)
            weight.add_(pull.addcmul_(rate, weight.grad, value=-1))


def norm_of(tensor: Tensor) -> Tensor:
    """Row by row, then in float64: on a CPU the norm of 10^7 values summed in one go is off by 1e-3."""
    norm: Tensor = torch.linalg.vector_norm(torch.linalg.vector_norm(tensor, dim=-1), dtype=torch.float64)
    return norm
