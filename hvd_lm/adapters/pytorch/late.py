"""Gradients that are applied one optimizer step late: they lie in memory of their own, beside those of the next window."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from hvd_lm.adapters.base import Applied
from hvd_lm.adapters.pytorch.memory import Weight

Start = Callable[[Weight], None]
"""Starts the reduction of its gradient."""


class Apply(Protocol):
    """The gradients of all weights, if their window is trusted."""

    def __call__(self, learning_rate: float, clip: float | None, unscale: float, *, trusted: bool) -> Applied: ...


@dataclass
class _Window:
    """The gradients of one window, on their way or arrived, and how they are to be applied."""

    gradients: dict[str, Tensor]
    how: tuple[float, float | None, float]


class LateUpdate:
    """Gradients of `weights`, each window's applied by the step of the next one."""

    def __init__(self, weights: Mapping[str, Weight], start: Start | None, apply: Apply) -> None:
        """Without `start` where no other rank has a part in them."""
        self._weights, self._start, self._apply = weights, start, apply
        self._late: _Window | None = None

    def step(self, learning_rate: float, clip: float | None, unscale: float, *, trusted: bool) -> Applied:
        """Apply the gradients of the window before, and start the reduction of this one's if they are `trusted`. Collective."""
        spare = self._late.gradients if self._late else {}
        outcome = self.catch_up() or Applied(0.0, applied=True)
        if not trusted:
            return Applied(outcome.norm, applied=False)
        gradients: dict[str, Tensor] = {}
        for name, weight in self._weights.items():
            assert weight.grad is not None
            if self._start:
                self._start(weight)
            gradients[name] = weight.grad
            # The next window's are begun in the memory of those that have just been applied.
            weight.gradient_memory = spare.get(name)
        self._late = _Window(gradients, (learning_rate, clip, unscale))
        return outcome

    def catch_up(self, *, apply: bool = True) -> Applied | None:
        """Apply the gradients that are on their way, or drop them; None if there are none. Collective."""
        late, self._late = self._late, None
        if late is None:
            return None
        with self._in_place(late.gradients):
            return self._apply(*late.how, trusted=apply)

    @contextmanager
    def _in_place(self, gradients: Mapping[str, Tensor]) -> Iterator[None]:
        """Within, they are the gradients of the weights; afterwards those of the next window are again."""
        of_next = {name: weight.grad for name, weight in self._weights.items()}
        for name, weight in self._weights.items():
            weight.grad = gradients[name]
        try:
            yield
        finally:
            for name, weight in self._weights.items():
                weight.grad = of_next[name]
