"""Gradients as halves in their own memory, and back."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from hvd_lm.adapters.pytorch.reducer import _BLOCK, from_halves_in_place, to_halves_in_place  # noqa: E402


@pytest.mark.parametrize("shape", [(1,), (7,), (2, 3), (_BLOCK,), (3, _BLOCK // 2 + 5), (5 * _BLOCK + 1,)])
def test_halves_are_those_of_a_cast_and_share_the_memory(shape: tuple[int, ...]) -> None:
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    expected = gradient.half()
    halves = to_halves_in_place(gradient)
    assert halves.data_ptr() == gradient.data_ptr()
    assert torch.equal(halves, expected.flatten())
    halves *= 2
    from_halves_in_place(gradient)
    assert torch.equal(gradient, expected.float() * 2)
