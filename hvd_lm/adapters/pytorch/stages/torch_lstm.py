"""The LSTM as PyTorch has it: nn.LSTM and autograd. On a GPU that is cuDNN's.

Shapes: K micro-batches, T time, B sequences, D input width, H units.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from hvd_lm.adapters.pytorch.stages.base import Complete, LayerState, Stage


class TorchLstm(Stage):
    """A layer."""

    def __init__(self, weights: Mapping[str, nn.Parameter], units: int) -> None:
        """`weights` by role: input_kernel [4H, D], recurrent_kernel [4H, H], bias [4H]."""
        self.units = units
        self.input_kernel, self.recurrent_kernel, self.bias = (
            weights[role] for role in ("input_kernel", "recurrent_kernel", "bias")
        )
        self._lstm = nn.LSTM(self.input_kernel.shape[1], units, device=self.bias.device)
        self._lstm.weight_ih_l0, self._lstm.weight_hh_l0 = self.input_kernel, self.recurrent_kernel
        self._lstm.bias_ih_l0 = self.bias
        # The second bias would double the step of the first under Adam: fixed at zero, not trained.
        fixed = self._lstm.get_parameter("bias_hh_l0")
        nn.init.zeros_(fixed)
        fixed.requires_grad_(False)
        # On a GPU all weights move into one piece of memory, as cuDNN wants them.
        self._lstm.flatten_parameters()
        self._kept: list[tuple[Tensor, Tensor]] = []

    def forward(
        self, inputs: Tensor, state: LayerState | None, noise: Tensor | None, *, keep: int = 0
    ) -> tuple[Tensor, LayerState | None]:
        assert state is not None
        h_BH, c_BH = state
        with torch.set_grad_enabled(keep > 0):
            inputs = inputs.detach().requires_grad_(keep > 0)
            # cuDNN wants a state in one piece; one of several layers may have been cut from them.
            before = h_BH[None].contiguous(), c_BH[None].contiguous()
            outputs_TBH, (h_1BH, c_1BH) = self._lstm(inputs, before)
        if keep:
            self._kept.append((inputs, outputs_TBH))
        return outputs_TBH.detach(), (h_1BH[0].detach(), c_1BH[0].detach())

    def backward(self, gradients_KTBH: Tensor, complete: Complete) -> Tensor:
        by_inputs = []
        for (inputs_TBD, outputs_TBH), gradient_TBH in zip(self._kept, gradients_KTBH, strict=True):
            outputs_TBH.backward(gradient_TBH)  # type: ignore[no-untyped-call]
            assert inputs_TBD.grad is not None
            by_inputs.append(inputs_TBD.grad)
        self._kept.clear()
        for weight in (self.recurrent_kernel, self.input_kernel, self.bias):
            complete(weight)
        return torch.stack(by_inputs)
