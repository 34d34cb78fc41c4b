"""The output layer's own forward and backward against autograd's, over more tokens than a chunk holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from hvd_lm.adapters.pytorch.stages.output import ACCELERATOR_LOGITS, CHUNK, accumulate_cross_entropy, chunk_tokens  # noqa: E402

TOKENS, VOCABULARY, UNITS, IGNORED = 2 * CHUNK + 19, 50, 24, -1
WEIGHTS = torch.linspace(0.25, 0.5, TOKENS, dtype=torch.float64)

Case = tuple[Any, Any, Any, Any]


@pytest.fixture
def case() -> Case:
    """Outputs [N, H], kernel [V, H], bias [V], and targets [N], of which some are ignored: in a chunk that has others too, and
    all of the last."""
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Any:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    targets = torch.randint(VOCABULARY, (TOKENS,), generator=generator)
    targets[5:9] = IGNORED
    targets[-19:] = IGNORED
    return normal(TOKENS, UNITS), normal(VOCABULARY, UNITS).requires_grad_(), normal(VOCABULARY).requires_grad_(), targets


def test_loss_and_gradients_are_those_of_autograd(case: Case) -> None:
    """Also when they add to what an earlier micro-batch has left."""
    outputs, kernel, bias, targets = case
    for _ in range(2):
        loss, by_outputs = accumulate_cross_entropy(outputs, kernel, bias, targets, WEIGHTS, ignored=IGNORED)
    found = [by_outputs, kernel.grad, bias.grad]
    kernel.grad = bias.grad = None
    for _ in range(2):
        leaf = outputs.clone().requires_grad_()
        logits = torch.nn.functional.linear(leaf, kernel, bias)
        expected = torch.nn.functional.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="none")
        (expected * WEIGHTS).sum().backward()
    torch.testing.assert_close([loss, *found], [expected.detach().sum(), leaf.grad, kernel.grad, bias.grad], rtol=1e-12, atol=1e-12)
    assert not by_outputs[targets == IGNORED].any()


class LargestTensor(TorchDispatchMode):
    """Notes how many values the largest result of an operation has."""

    values = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.values = max([self.values, *(tensor.numel() for tensor in _tensors(result))])
        return result


def _tensors(result: Any) -> Iterator[Any]:
    if isinstance(result, torch.Tensor):
        yield result
    elif isinstance(result, (list, tuple)):
        for item in result:
            yield from _tensors(item)


def test_logits_never_exist_as_a_whole(case: Case) -> None:
    outputs, kernel, bias, targets = case
    with LargestTensor() as largest:
        accumulate_cross_entropy(outputs, kernel, bias, targets, WEIGHTS, ignored=IGNORED)
    assert largest.values == CHUNK * VOCABULARY


def test_an_accelerator_makes_many_logits_at_a_time() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert chunk_tokens(cpu, 10_000) == CHUNK
    assert 0 <= ACCELERATOR_LOGITS - 10_000 * chunk_tokens(gpu, 10_000) < 10_000
    assert chunk_tokens(gpu, 1_000_000) == CHUNK
