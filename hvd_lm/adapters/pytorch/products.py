"""Matrix products in PyTorch, through oneDNN on a CPU.

torch.mm takes MKL there, which keeps off AVX-512 on other processors than Intel's: on an AMD EPYC it has 0.44 times the speed of
oneDNN, which torch brings along for its compiler (torch.ops.mkldnn). Elsewhere, on a GPU or without oneDNN, products are torch.mm.
On a processor without AVX-512 both multiply alike, but MKL adds a product to a sum in one go, at 1.4 to 1.6 times the speed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hvd_lm.adapters.pytorch.memory import first_gradient

_ONEDNN: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]

_MKL_ADDS: bool = torch.backends.cpu.get_cpu_capability() != "AVX512"

ROWS = 256
"""Of a sum that are computed at a time: the product is added while it is still in the cache, and never exists as a whole."""


def uses_onednn(tensor: Tensor) -> bool:
    """Whether products with `tensor` go through oneDNN."""
    return tensor.device.type == "cpu" and tensor.dtype == torch.float32 and _ONEDNN


def pack(right_NK: Tensor, rows: int) -> Tensor:
    """`right_NK` in the order of memory that oneDNN likes best for `product` with `rows` rows; usable for that alone."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(right_NK, rows)
    return packed


def product(left_MK: Tensor, right_NK: Tensor, *, bias_N: Tensor | None = None, plus_MN: Tensor | None = None) -> Tensor:
    """``left @ right^T``, plus one of the others; views are welcome. No autograd. [M, N]"""
    if uses_onednn(left_MK):
        linear = torch.ops.mkldnn._linear_pointwise
        result: Tensor
        if plus_MN is None:
            result = linear(left_MK, right_NK, bias_N, "none", [], "")
        else:
            result = linear.binary(left_MK, plus_MN, right_NK, bias_N, "add")
        return result
    addend = bias_N if plus_MN is None else plus_MN
    return left_MK @ right_NK.t() if addend is None else torch.addmm(addend, left_MK, right_NK.t())


def add_product_to_gradient(parameter_RC: Tensor, left_NR: Tensor, right_NC: Tensor) -> None:
    """``parameter.grad += left^T @ right``; without a gradient it is the first. No autograd."""
    first = parameter_RC.grad is None
    gradient_RC = first_gradient(parameter_RC) if parameter_RC.grad is None else parameter_RC.grad
    if _MKL_ADDS or not uses_onednn(left_NR):
        gradient_RC.addmm_(left_NR.t(), right_NC, beta=0 if first else 1)
        return
    for rows, gradient in zip(torch.split(left_NR, ROWS, dim=1), torch.split(gradient_RC, ROWS), strict=True):
        # torch transposes a whole matrix several times as fast as a view of some columns.
        part = product(rows.contiguous().t(), right_NC.t())
        _ = gradient.copy_(part) if first else gradient.add_(part)


def add_to_gradient(parameter: Tensor, part: Tensor) -> None:
    """``parameter.grad += part``; without a gradient it is the first."""
    if parameter.grad is None:
        first_gradient(parameter).copy_(part)
    else:
        parameter.grad.add_(part)
