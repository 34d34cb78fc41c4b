"""The number format in which activations travel between ranks, as PyTorch tensors."""

from __future__ import annotations

import torch
from torch import Tensor


class Wire:
    """float32, or float16, which ends at 65504: whether an activation was beyond that is told beside the loss of the window.

    Of a gradient the loss scale takes care: its infinity is one in the norm.
    """

    def __init__(self, device: torch.device, *, halves: bool) -> None:
        self._halves = halves
        self.dtype = torch.float16 if halves else torch.float32
        self._beyond = torch.zeros((), dtype=torch.bool, device=device)

    def activations(self, rows: Tensor) -> Tensor:
        """As they travel."""
        if not self._halves:
            return rows
        halves = rows.half()
        self._beyond |= halves.isinf().any()
        return halves

    def gradients(self, rows: Tensor) -> Tensor:
        """By activations, as they travel."""
        return rows.to(self.dtype)

    def take_beyond(self) -> float:
        """1 if an activation was beyond the format since this was last asked, else 0."""
        beyond = float(self._beyond)
        self._beyond.zero_()
        return beyond
