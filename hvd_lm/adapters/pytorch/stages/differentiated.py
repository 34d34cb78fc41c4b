"""A stage whose gradient PyTorch finds: what a new cell derives from. Its forward is all that is written.

The forward of the micro-batches that wait is computed again in the backward, side by side, under autograd. Products with a weight
(`Operands.product`) give only the gradient of their other factor there; what the weight's own is made of is noted, so that one
product over all steps makes it, not one a step.

Shapes: K micro-batches, T time, B sequences, D input width, H units.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hvd_lm.adapters.pytorch.products import add_product_to_gradient, add_to_gradient, product
from hvd_lm.adapters.pytorch.stages.base import Complete, LayerState, Stage
from hvd_lm.model.stages import GAIN


class Operands:
    """The weights of a stage, by role, as its forward may use them."""

    def __init__(self, weights: Mapping[str, nn.Parameter]) -> None:
        self._weights = weights
        self._notes: dict[str, list[tuple[Tensor, Tensor]]] = {}
        self._leaves: dict[str, Tensor] = {}
        self._matrices: dict[str, tuple[Tensor, Tensor]] = {}
        """Kernels as they multiply, of those that have a gain: as made of both, and cut from these."""

    def _matrix(self, role: str) -> Tensor:
        """A kernel as it multiplies: under weight normalization its rows with the lengths that their gains say."""
        kernel, gain = self[role], role + GAIN
        if gain not in self._weights:
            return kernel
        if role not in self._matrices:
            made = kernel * (self[gain] / torch.linalg.vector_norm(kernel, dim=1))[:, None]
            # Apart from the graph of the products, which gives no gradient by it.
            self._matrices[role] = made, made.detach().requires_grad_()
        return self._matrices[role][1]

    def __getitem__(self, role: str) -> Tensor:
        """The weight itself, differentiated at each use: for what is small, or used once."""
        if role not in self._leaves:
            self._leaves[role] = self._weights[role].detach().requires_grad_()
        return self._leaves[role]

    def product(self, left: Tensor, role: str) -> Tensor:
        """``left [..., D] @ weight [H, D]^T``, [..., H]."""
        left_ND, notes = left.flatten(0, -2), self._notes.setdefault(role, [])
        result: Tensor = _NotedProduct.apply(left_ND, self._matrix(role), notes)  # type: ignore[no-untyped-call]
        return result.view(*left.shape[:-1], -1)

    def differentiate(self, outputs: Tensor, inputs: Tensor, gradient: Tensor, complete: Complete) -> Tensor:
        """The gradient by `inputs`; adds to those of the weights."""
        # Weights of noted products are asked for too, or those of a first step, which no input leads to, would be left out.
        leaves = [inputs, *self._leaves.values(), *(cut for _, cut in self._matrices.values())]
        by_inputs, *by_weights = torch.autograd.grad(outputs, leaves, gradient, allow_unused=True)
        for role, by_weight in zip(self._leaves, by_weights, strict=False):
            weight, gain = self._weights[role], self._weights.get(role + GAIN)
            if role.endswith(GAIN):
                continue  # comes with its kernel
            if notes := self._notes.get(role):
                factors = torch.cat([by for _, by in notes]), torch.cat([left for left, _ in notes])
                if gain is None:
                    add_product_to_gradient(weight, *factors)
                else:
                    self._add_to_both(role, product(factors[0].t(), factors[1].t()))
                    complete(gain)
            else:
                add_to_gradient(weight, by_weight)
            complete(weight)
        return by_inputs

    def _add_to_both(self, role: str, by_matrix: Tensor) -> None:
        """A gradient by a kernel as it multiplies, to those of the kernel and of its gain."""
        roles = role, role + GAIN
        by_both = torch.autograd.grad(self._matrices[role][0], [self._leaves[its] for its in roles], by_matrix)
        for its, gradient in zip(roles, by_both, strict=True):
            add_to_gradient(self._weights[its], gradient)


class _NotedProduct(torch.autograd.Function):
    """``left @ weight^T``."""

    @staticmethod
    def forward(context: Any, left: Tensor, weight: Tensor, notes: list[tuple[Tensor, Tensor]]) -> Tensor:
        context.save_for_backward(left)
        context.weight, context.notes = weight, notes
        return product(left, weight)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (by_product,) = gradients
        (left,) = context.saved_tensors
        context.notes.append((left.detach(), by_product))
        return product(by_product, context.weight.t()), None, None


class DifferentiatedStage(Stage):
    """A stage that is its forward."""

    def __init__(self, weights: Mapping[str, nn.Parameter], units: int) -> None:
        """`weights` by role, as the stage declares them (hvd_lm.model.stages)."""
        self._weights, self.units = weights, units
        self._kept: list[tuple[Tensor, LayerState]] = []

    @abstractmethod
    def compute(self, inputs_TBD: Tensor, state: LayerState, weights: Operands) -> tuple[Tensor, LayerState]:
        """Outputs [T, B, H] and the state after."""

    @torch.no_grad()
    def forward(
        self, inputs: Tensor, state: LayerState | None, noise: Tensor | None, *, keep: int = 0
    ) -> tuple[Tensor, LayerState | None]:
        assert state is not None
        if keep:
            self._kept.append((inputs, state))
        return self.compute(inputs, state, Operands(self._weights))

    @torch.no_grad()
    def backward(self, gradients_KTBH: Tensor, complete: Complete) -> Tensor:
        count, steps, batch, _ = gradients_KTBH.shape
        inputs = torch.cat([inputs_TBD for inputs_TBD, _ in self._kept], dim=1)
        state = tuple(torch.cat(tensors) for tensors in zip(*(before for _, before in self._kept), strict=True))
        self._kept.clear()
        operands = Operands(self._weights)
        with torch.enable_grad():
            outputs, _ = self.compute(inputs.requires_grad_(), (state[0], state[1]), operands)
        gradient = gradients_KTBH.transpose(0, 1).reshape(steps, count * batch, -1)
        by_inputs = operands.differentiate(outputs, inputs, gradient, complete)
        return by_inputs.view(steps, count, batch, -1).transpose(0, 1)
