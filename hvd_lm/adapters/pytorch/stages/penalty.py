"""What training minimizes beside the cross-entropy: penalties on the activations that go to the output.

Merity, McCann & Socher 2017, "Revisiting Activation Regularization for Language RNNs" (arXiv:1708.01009), AR and TAR:

    activation    factor * mean over tokens and activations of x[t]^2
    temporal      factor * mean over tokens and activations of (x[t] - x[t-1])^2

The mean is over the tokens of the window on all ranks, as that of the cross-entropy is; the first of a micro-batch has none before
it, and adds nothing. Activations go through as they are, and the loss that is told is the cross-entropy alone.

Shapes: K micro-batches, T time, B sequences, H width.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor
from torch.nn import functional

from hvd_lm.adapters.pytorch.stages.base import Complete, LayerState, Stage


class _Penalty(Stage):
    takes_noise = True

    def __init__(self, factor: float) -> None:
        self._factor = factor
        self._kept: list[tuple[Tensor, Tensor]] = []

    def forward(
        self, inputs: Tensor, state: LayerState | None, noise: Tensor | None, *, keep: int = 0
    ) -> tuple[Tensor, LayerState | None]:
        """`noise`: [T, B], the weight of each token."""
        if keep:
            assert noise is not None
            self._kept.append((inputs, noise))
        return inputs, state

    @torch.no_grad()
    def backward(self, gradients_KTBH: Tensor, complete: Complete) -> Tensor:
        inputs_KTBH, weights_KTB = (torch.stack(tensors) for tensors in zip(*self._kept, strict=True))
        self._kept.clear()
        return gradients_KTBH + self._gradient(inputs_KTBH, weights_KTB[..., None] * (2 * self._factor / inputs_KTBH.shape[-1]))

    @abstractmethod
    def _gradient(self, inputs_KTBH: Tensor, weights_KTB1: Tensor) -> Tensor:
        """By the inputs, of the sum of ``weights / 2 * square``."""


class ActivationPenalty(_Penalty):
    """Of the squares of activations."""

    def _gradient(self, inputs_KTBH: Tensor, weights_KTB1: Tensor) -> Tensor:
        return inputs_KTBH * weights_KTB1


class TemporalPenalty(_Penalty):
    """Of the squares of what changes in activations from token to token."""

    def _gradient(self, inputs_KTBH: Tensor, weights_KTB1: Tensor) -> Tensor:
        by_changes = inputs_KTBH.diff(dim=1) * weights_KTB1[:, 1:]
        before, after = (0, 0, 0, 0, 1, 0), (0, 0, 0, 0, 0, 1)
        return functional.pad(by_changes, before) - functional.pad(by_changes, after)
