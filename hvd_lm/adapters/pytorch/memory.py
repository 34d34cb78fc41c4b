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
    gradient_is_zero: bool
    """Whether all of it is zero until the next window begins."""

    def __new__(cls, *shape: int, device: torch.device | None = None) -> Weight:
        weight: Any = super().__new__(cls, lasting(*shape, device=device))
        weight.gradient_memory, weight.gradient_is_zero = None, False
        return weight  # type: ignore[no-any-return]


def first_gradient(parameter: Tensor) -> Tensor:
    """Begin the gradient of a window: `parameter.grad`, undefined."""
    if not isinstance(parameter, Weight):
        parameter.grad = torch.empty_like(parameter)
        return parameter.grad
    if parameter.gradient_memory is None:
        parameter.gradient_memory = lasting(*parameter.shape, device=parameter.device)
    parameter.grad = parameter.gradient_memory
    parameter.gradient_is_zero = False
    return parameter.grad


def gradient_by_rows(parameter: Tensor) -> Tensor:
    """The gradient of a window, to add to some rows of it: `parameter.grad`, zeros if it had not begun."""
    if parameter.grad is not None:
        return parameter.grad
    is_zero = isinstance(parameter, Weight) and parameter.gradient_is_zero
    return first_gradient(parameter) if is_zero else first_gradient(parameter).zero_()


def clear_gradient_rows(weight: Weight, rows: Tensor) -> None:
    """At the end of a window that added to these `rows` alone: the next one finds zeros, without a pass over all rows."""
    assert weight.grad is not None
    weight.grad.index_fill_(0, rows, 0)
    weight.gradient_is_zero = True


def to_numpy(tensor: Tensor, *, copy: bool = True) -> NDArray[np.float32]:
    """Without `copy` it may be the tensor's own memory."""
    array: NDArray[np.float32] = tensor.detach().cpu().numpy()
    return array.copy() if copy else array
