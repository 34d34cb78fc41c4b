"""What every stage of a model does in PyTorch: a forward that may wait, and a backward that several micro-batches share.

    outputs, state = stage.forward(inputs, state, noise, keep=2)            # once for each micro-batch
    outputs, state = stage.forward(inputs, state, noise, keep=1)
    gradients_by_inputs = stage.backward(gradients_by_outputs, complete)    # of both; adds to the weights' gradients

Shapes: K micro-batches, T time, B sequences, D input width, H units or output width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeAlias

from torch import Tensor, nn

LayerState: TypeAlias = tuple[Tensor, Tensor]
"""h and c, [B, H] each."""

Complete: TypeAlias = Callable[[nn.Parameter], None]
"""Told of each weight as soon as the gradient of the micro-batches is in `grad`, while others are still computed."""


class Stage(ABC):
    """One stage; it is given its weights, which other stages may share."""

    units = 0
    """Width of h, and of c, in its state; 0 if it has none."""
    reads_tokens = False
    """Whether its `noise` is the tokens of the micro-batch, [T, B]."""
    takes_noise = False
    """Whether a micro-batch brings `noise` for it."""

    @abstractmethod
    def forward(
        self, inputs: Tensor, state: LayerState | None, noise: Tensor | None, *, keep: int = 0
    ) -> tuple[Tensor, LayerState | None]:
        """Outputs [T, B, H] of inputs [T, B, D], and the state after, both cut from any graph.

        `noise` is the stage's own (a mask, of a stage that drops; what tokens weigh, of a penalty). With `keep` the micro-batch
        waits for the backward, and so will ``keep - 1`` more: there is room for them from now on.
        """

    @abstractmethod
    def backward(self, gradients_KTBH: Tensor, complete: Complete) -> Tensor:
        """[K, T, B, D] by the inputs of all micro-batches that were kept; adds to the gradients of the weights."""

    def weights_changed(self) -> None:  # noqa: B027 - most derive nothing
        """Forget what was derived from the weights."""
