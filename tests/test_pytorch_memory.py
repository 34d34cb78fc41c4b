"""Memory that stays from window to window."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from hvd_lm.adapters.pytorch.memory import Weight, first_gradient, lasting  # noqa: E402


@pytest.mark.parametrize("shape", [(3,), (2, 5), (2048, 1024), (0, 4)])
def test_lasting_memory_is_that_of_a_tensor(shape: tuple[int, ...]) -> None:
    tensor = lasting(*shape)
    assert (tensor.shape, tensor.dtype, tensor.is_contiguous()) == (shape, torch.float32, True)
    assert torch.equal(tensor.fill_(2.5), torch.full(shape, 2.5))


def test_a_gradient_lies_in_the_same_memory_in_every_window() -> None:
    weight = Weight(3, 4)
    optimizer = torch.optim.SGD([weight], 0.1)
    places = set()
    for _ in range(3):
        first_gradient(weight).fill_(1.0)
        places.add(weight.grad.data_ptr())
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    assert len(places) == 1
    assert places != {weight.data_ptr()}


def test_a_parameter_of_another_kind_gets_new_memory() -> None:
    parameter = torch.nn.Parameter(torch.ones(2, 3))
    assert first_gradient(parameter) is parameter.grad
    assert parameter.grad.shape == (2, 3)
