"""Dropout, with masks that are given (hvd_lm.model.noise)."""

from __future__ import annotations

import torch
from torch import Tensor

from hvd_lm.adapters.pytorch.stages.base import Complete, LayerState, Stage


class Drop(Stage):
    """Activations under a mask bool [T, B, D], divided by the share that masks keep; without one, as they are.

    A mask has 1 for T where it is locked, and 1 for D where words drop.
    """

    takes_noise = True

    def __init__(self, keep_probability: float) -> None:
        self._keep_probability = keep_probability
        self._kept: list[Tensor | None] = []

    @torch.no_grad()
    def forward(
        self, inputs: Tensor, state: LayerState | None, noise: Tensor | None, *, keep: int = 0
    ) -> tuple[Tensor, LayerState | None]:
        if keep:
            self._kept.append(noise)
        return self._drop(inputs, noise), state

    def backward(self, gradients_KTBH: Tensor, complete: Complete) -> Tensor:
        masks = [mask for mask in self._kept if mask is not None]
        self._kept.clear()
        return self._drop(gradients_KTBH, torch.stack(masks) if masks else None)

    def _drop(self, activations: Tensor, mask: Tensor | None) -> Tensor:
        return activations if mask is None else activations * mask / self._keep_probability
