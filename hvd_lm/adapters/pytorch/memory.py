"""Memory of PyTorch tensors that live as long as the model: weights, their gradients, moments, tapes.

On a CPU it lies outside of the heap. What is freed and taken again in every window would leave holes there that other arrays settle
in, and what stays would keep holes from joining: the process would grow by a tenth.
"""

from __future__ import annotations

import math
import mmap
from typing import Any

import torch
from torch import Tensor, nn


def lasting(*shape: int, device: torch.device | None = None) -> Tensor:
    """An undefined float32 tensor; on a CPU in huge pages where the system has them, which makes training a few per cent faster."""
    if (device is not None and device.type != "cpu") or 0 in shape:
        return torch.empty(shape, device=device)
    memory = mmap.mmap(-1, math.prod(shape) * torch.float32.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.float32).view(shape)


class Weight(nn.Parameter):
    """An undefined parameter whose gradient lies in the same memory in every window."""

    gradient_memory: Tensor

    def __new__(cls, *shape: int, device: torch.device | None = None) -> Weight:
        weight: Any = super().__new__(cls, lasting(*shape, device=device))
        weight.gradient_memory = lasting(*shape, device=device)
        return weight  # type: ignore[no-any-return]


def first_gradient(parameter: Tensor) -> Tensor:
    """Begin the gradient of a window: `parameter.grad`, undefined."""
    parameter.grad = parameter.gradient_memory if isinstance(parameter, Weight) else torch.empty_like(parameter)
    return parameter.grad
