"""Memory of PyTorch tensors that live as long as the model: weights, their gradients, moments, tapes.

On a CPU it lies outside of the heap. What is freed and taken again in every window would leave holes there that other arrays settle
in, and what stays would keep holes from joining: the process would grow by a tenth.
"""

from __future__ import annotations

import math
import mmap
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
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
    """An undefined parameter whose gradient lies in the same memory in every window, from the first one on."""

    gradient_memory: Tensor | None

    def __new__(cls, *shape: int, device: torch.device | None = None) -> Weight:
        weight: Any = super().__new__(cls, lasting(*shape, device=device))
        weight.gradient_memory = None
        return weight  # type: ignore[no-any-return]


def first_gradient(parameter: Tensor) -> Tensor:
    """Begin the gradient of a window: `parameter.grad`, undefined."""
    if not isinstance(parameter, Weight):
        parameter.grad = torch.empty_like(parameter)
        return parameter.grad
    if parameter.gradient_memory is None:
        parameter.gradient_memory = lasting(*parameter.shape, device=parameter.device)
    parameter.grad = parameter.gradient_memory
    return parameter.grad


def to_numpy(tensor: Tensor, *, copy: bool = True) -> NDArray[np.float32]:
    """Without `copy` it may be the tensor's own memory."""
    array: NDArray[np.float32] = tensor.detach().cpu().numpy()
    return array.copy() if copy else array
