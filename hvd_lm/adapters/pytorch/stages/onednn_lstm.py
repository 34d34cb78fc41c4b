"""The LSTM on a CPU, written by hand: nn.LSTM is bound by MKL's products there (see `products`), and by the memory that each small
batch reads all recurrent weights from.

Shapes: K micro-batches, T time, B sequences, D input width, H units. Gates in the order i, f, g, o.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hvd_lm.adapters.pytorch.memory import lasting
from hvd_lm.adapters.pytorch.products import add_product_to_gradient, add_to_gradient, pack, product
from hvd_lm.adapters.pytorch.stages.base import Complete, LayerState, Stage

_FEW_STEPS = 4
"""So short a text does not pay for packing weights, unless they are packed already."""


class _Tape(NamedTuple):
    """What the backward needs of the forwards; kept from window to window, since fresh memory costs more than what goes into it."""

    hs_KTBH: Tensor
    """T + 1 of them: the first is the state before."""
    cs_KTBH: Tensor
    """The same."""
    gates_KTBG: Tensor
    """[K, T, B, 4H]"""


class OneDnnLstm(Stage):
    """Only what is recurrent runs step by step: input projections and all weight gradients are one product over all tokens.

    The backward takes the sequences of all micro-batches side by side, so that it reads the recurrent weights once for all.
    """

    def __init__(self, weights: Mapping[str, nn.Parameter], units: int) -> None:
        """`weights` by role: input_kernel [4H, D], recurrent_kernel [4H, H], bias [4H]."""
        self.units = units
        self.input_kernel, self.recurrent_kernel = weights["input_kernel"], weights["recurrent_kernel"]
        self.bias = weights["bias"]
        self._packed_recurrent: Tensor | None = None
        self._kept_inputs: list[Tensor] = []
        self._tape: _Tape | None = None

    def weights_changed(self) -> None:
        self._packed_recurrent = None

    @torch.no_grad()
    def forward(
        self, inputs: Tensor, state: LayerState | None, noise: Tensor | None, *, keep: int = 0
    ) -> tuple[Tensor, LayerState | None]:
        assert state is not None
        steps, batch, _ = inputs.shape
        tape = self._reserve(keep, steps, batch) if keep else self._new_tape(1, steps, batch)
        slot = len(self._kept_inputs) if keep else 0
        hs_TBH, cs_TBH, gates_TBG = (tensor[slot] for tensor in tape)
        hs_TBH[0], cs_TBH[0] = state
        projected_TBG = product(inputs.flatten(0, 1), self.input_kernel, bias_N=self.bias).view_as(gates_TBG)
        recurrent = self._recurrent(steps, batch)
        for h, c, before_BG, gates_BG, h_after, c_after in zip(
            hs_TBH, cs_TBH, projected_TBG, gates_TBG, hs_TBH[1:], cs_TBH[1:], strict=False
        ):
            _step(h, c, product(h, recurrent, plus_MN=before_BG), gates_BG, h_after, c_after)
        if keep:
            self._kept_inputs.append(inputs)
        return hs_TBH[1:], (hs_TBH[-1].clone(), cs_TBH[-1].clone())

    @torch.no_grad()
    def backward(self, gradients_KTBH: Tensor, complete: Complete) -> Tensor:
        assert self._tape is not None
        count, steps, batch, units = gradients_KTBH.shape
        hs_KTBH, cs_KTBH, gates_KTBG = (tensor[:count] for tensor in self._tape)
        d_h = gradients_KTBH.new_zeros(count * batch, units)
        d_c = gradients_KTBH.new_zeros(count, batch, units)
        recurrent = _pack_transposed(self.recurrent_kernel, count * batch)
        for t in reversed(range(steps)):
            d_h = d_h.view(count, batch, units).add_(gradients_KTBH[:, t])
            gates_KBG = gates_KTBG[:, t]
            d_gates_KBG, d_c = _step_back(d_h, d_c, cs_KTBH[:, t], cs_KTBH[:, t + 1], gates_KBG)
            gates_KBG.copy_(d_gates_KBG)
            d_h = torch.cat([product(d_gates_KBG.view(-1, 4 * units), part) for part in recurrent], dim=1)
        del recurrent
        d_gates_NG = gates_KTBG.flatten(0, 2)
        # What travels longest leaves first.
        add_product_to_gradient(self.recurrent_kernel, d_gates_NG, hs_KTBH[:, :-1].flatten(0, 2))
        complete(self.recurrent_kernel)
        inputs_ND = torch.cat([inputs.flatten(0, 1) for inputs in self._kept_inputs])
        self._kept_inputs.clear()
        add_product_to_gradient(self.input_kernel, d_gates_NG, inputs_ND)
        complete(self.input_kernel)
        add_to_gradient(self.bias, d_gates_NG.sum(0))
        complete(self.bias)
        return product(d_gates_NG, self.input_kernel.t()).view(count, steps, batch, -1)

    def _recurrent(self, steps: int, batch: int) -> Tensor:
        if self._packed_recurrent is None:
            if steps < _FEW_STEPS:
                return self.recurrent_kernel
            self._packed_recurrent = pack(self.recurrent_kernel, batch)
        return self._packed_recurrent

    def _reserve(self, room: int, steps: int, batch: int) -> _Tape:
        """The tape, with room for so many micro-batches beside those that are kept, which stay. All have the same T and B."""
        kept = len(self._kept_inputs)
        fits = self._tape is not None and self._tape.gates_KTBG.shape[1:3] == (steps, batch)
        assert fits or not kept, "micro-batches of another shape wait for their backward"
        if self._tape is None or not fits or kept + room > len(self._tape.gates_KTBG):
            earlier = _Tape(*(tensor[:kept] for tensor in self._tape)) if self._tape and kept else None
            self._tape = None  # its memory is free for the new one
            self._tape = self._new_tape(kept + room, steps, batch)
            for tensor, kept_part in zip(self._tape, earlier or (), strict=False):
                tensor[:kept] = kept_part
        return self._tape

    def _new_tape(self, count: int, steps: int, batch: int) -> _Tape:
        states = (count, steps + 1, batch, self.units)
        return _Tape(lasting(*states), lasting(*states), lasting(count, steps, batch, 4 * self.units))


_COLUMNS = 256
"""Of a matrix that are transposed at a time: what packing takes besides the packed matrix itself."""


def _pack_transposed(matrix_NK: Tensor, rows: int) -> list[Tensor]:
    """Column blocks of `matrix_NK`: the products of `rows` rows with each, side by side, are ``left_MN @ matrix_NK``."""
    # torch transposes a whole matrix several times as fast as a view of some columns.
    return [pack(columns.contiguous().t(), rows) for columns in torch.split(matrix_NK, _COLUMNS, dim=1)]


def _step(h: Tensor, c: Tensor, before_BG: Tensor, gates_BG: Tensor, h_after: Tensor, c_after: Tensor) -> None:
    """Write gates, c and h of a step; `before_BG`: the gates before their nonlinearities."""
    units = h.shape[-1]
    torch.sigmoid(before_BG, out=gates_BG)
    i, f, g, o = torch.split(gates_BG, units, dim=-1)
    torch.tanh(before_BG[..., 2 * units : 3 * units], out=g)
    torch.mul(f, c, out=c_after).addcmul_(i, g)
    torch.tanh(c_after, out=h_after).mul_(o)


def _step_back(d_h: Tensor, d_c: Tensor, c: Tensor, c_after: Tensor, gates: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients by the gates before their nonlinearities, and by `c`."""
    i, f, g, o = torch.split(gates, d_h.shape[-1], dim=-1)
    by_sigmoid, by_tanh = torch.ops.aten.sigmoid_backward, torch.ops.aten.tanh_backward
    tanh_c = torch.tanh(c_after)
    d_gates = torch.empty(gates.shape)
    d_i, d_f, d_g, d_o = torch.split(d_gates, d_h.shape[-1], dim=-1)
    d_c = d_c + by_tanh(d_h * o, tanh_c)
    d_i.copy_(by_sigmoid(d_c * g, i))
    d_f.copy_(by_sigmoid(d_c * c, f))
    d_g.copy_(by_tanh(d_c * i, g))
    d_o.copy_(by_sigmoid(d_h * tanh_c, o))
    return d_gates, d_c * f
