"""The update of an optimizer step: torch's fused optimizers on moments of ours, which exist from the start."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from hvd_lm.adapters.base import OptimizerState
from hvd_lm.adapters.pytorch.memory import lasting, to_numpy
from hvd_lm.config import OptimizerConfig

# Canonical moment -> key in the state of torch's optimizer.
_KEYS = {"first": "exp_avg", "second": "exp_avg_sq", "momentum": "momentum_buffer"}


class Update:
    """Adam, or SGD with or without momentum, of `weights`."""

    def __init__(self, config: OptimizerConfig, weights: Mapping[str, nn.Parameter]) -> None:
        self._config, self._weights = config, weights
        self._optimizer = self._make(config)
        self.applied_steps = 0
        self.moments = {
            f"{moment}/{name}": lasting(*weight.shape, device=weight.device).zero_()
            for moment in config.moments
            for name, weight in weights.items()
        }
        self.link()

    def _make(self, config: OptimizerConfig) -> torch.optim.Optimizer:
        weights = self._weights.values()
        if config.optimizer == "adam":
            betas = (config.beta1, config.beta2)
            return torch.optim.Adam(weights, config.learning_rate, betas, config.epsilon, fused=True)
        return torch.optim.SGD(weights, config.learning_rate, config.momentum, fused=True)

    def link(self) -> None:
        """Let torch's optimizer work on `moments` and `applied_steps`, after they were set."""
        for name, weight in self._weights.items():
            state: dict[str, Tensor] = {_KEYS[moment]: self.moments[f"{moment}/{name}"] for moment in self._config.moments}
            if self._config.optimizer == "adam":
                state["step"] = torch.tensor(float(self.applied_steps), device=weight.device)
            self._optimizer.state[weight] = state

    def state(self, *, copy: bool) -> OptimizerState:
        return OptimizerState(self.applied_steps, {name: to_numpy(moment, copy=copy) for name, moment in self.moments.items()})

    def apply(self, learning_rate: float, factor: float) -> None:
        """Of the gradients times `factor`."""
        if factor != 1.0:
            torch._foreach_mul_([weight.grad for weight in self._weights.values() if weight.grad is not None], factor)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.step()
        self.applied_steps += 1


def norm_of(tensor: Tensor) -> Tensor:
    """Row by row, then in float64: on a CPU the norm of 10^7 values summed in one go is off by 1e-3."""
    norm: Tensor = torch.linalg.vector_norm(torch.linalg.vector_norm(tensor, dim=-1), dtype=torch.float64)
    return norm
