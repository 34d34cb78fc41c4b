"""Memory of PyTorch tensors that live as long as the model: weights, their gradients, moments, tapes.

What is freed and taken again in every window leaves holes in the heap that other arrays settle in, and the process grows.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_ALIGNMENT = 64
"""Bytes; a line of the cache."""


def lasting(*shape: int, device: torch.device | None = None) -> Tensor:
    """An undefined float32 tensor.

    On a CPU it is NumPy's memory, which asks the system for huge pages where it is large: training is a few per cent faster.
    """
    if device is not None and device.type != "cpu":
        return torch.empty(shape, device=device)
    size, spare = math.prod(shape), _ALIGNMENT // 4
    values = np.empty(size + spare, np.float32)
    start = -values.ctypes.data % _ALIGNMENT // 4
    return torch.from_numpy(values[start : start + size]).view(shape)


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
