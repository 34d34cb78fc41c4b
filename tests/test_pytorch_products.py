"""Products through oneDNN against torch.mm, on views too."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from hvd_lm.adapters.pytorch import products  # noqa: E402
from hvd_lm.adapters.pytorch.products import ROWS, add_product_to_gradient, add_to_gradient, pack, product  # noqa: E402

DTYPES = [torch.float32, torch.float64]
"""Through oneDNN, and through torch.mm."""


def normal(*shape: int, dtype: Any = torch.float32) -> Any:
    return torch.randn(shape, dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("transposed", ["neither", "left", "right"])
@pytest.mark.parametrize("added", ["nothing", "bias", "matrix"])
def test_product_is_that_of_torch(dtype: Any, transposed: str, added: str) -> None:
    left = normal(40, 7, dtype=dtype).t() if transposed == "left" else normal(7, 40, dtype=dtype)
    right = normal(40, 9, dtype=dtype).t() if transposed == "right" else normal(9, 40, dtype=dtype)
    bias = normal(9, dtype=dtype) if added == "bias" else None
    plus = normal(7, 9, dtype=dtype) if added == "matrix" else None
    expected = left @ right.t() + sum(addend for addend in (bias, plus) if addend is not None)
    torch.testing.assert_close(product(left, right, bias_N=bias, plus_MN=plus), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 8, 33])
def test_a_packed_matrix_serves_any_number_of_rows(rows: int) -> None:
    left, right = normal(rows, 64), normal(48, 64)
    torch.testing.assert_close(product(left, pack(right, 8)), left @ right.t(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mkl_adds", [True, False])
def test_a_gradient_is_the_sum_of_products(dtype: Any, mkl_adds: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over more rows than are computed at a time; on a processor with AVX-512, and without."""
    monkeypatch.setattr(products, "_MKL_ADDS", mkl_adds)
    parameter = torch.nn.Parameter(normal(2 * ROWS + 3, 5, dtype=dtype))
    lefts, rights = normal(2, 11, 2 * ROWS + 3, dtype=dtype), normal(2, 11, 5, dtype=dtype)
    for left, right in zip(lefts, rights, strict=True):
        add_product_to_gradient(parameter, left, right)
    torch.testing.assert_close(parameter.grad, sum(a.t() @ b for a, b in zip(lefts, rights, strict=True)), rtol=1e-5, atol=1e-5)


def test_parts_of_a_gradient_add_up() -> None:
    parameter = torch.nn.Parameter(normal(4))
    for value in (1.0, 2.0):
        add_to_gradient(parameter, torch.full((4,), value))
    assert parameter.grad is not None
    assert parameter.grad.tolist() == [3.0] * 4
