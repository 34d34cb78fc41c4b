"""Gradients of which few values travel (hvd_lm.compression.selectors), in one message: those of all parameters together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import horovod.torch as hvd
import torch
from torch import Tensor

from hvd_lm.adapters.pytorch.compressed import Compressed, OnTheWay, Send, Summed
from hvd_lm.adapters.pytorch.update import norm_of
from hvd_lm.compression.compressors import Compression
from hvd_lm.compression.kept import KEPT, VELOCITY, Firsts
from hvd_lm.compression.selectors import Selector
from hvd_lm.model.split import Share


@dataclass
class _Selection:
    """One gradient on its way."""

    arrive: partial[None]

    def poll(self) -> None:
        """All leave together."""


class Selected(Compressed):
    """As values that each rank chooses, and their places.

    The norm of a rank's gradient is known when all of it is there. So nothing is sent beside the backward: there is little to send.
    """

    def __init__(
        self, selector: Selector, firsts: Firsts, remembered: Mapping[str, Share], device: torch.device, ranks: int, clip: float
    ) -> None:
        """`clip`: the norm that the gradient of one of the `ranks` is clipped to."""
        super().__init__(firsts, remembered, device)
        self._selector, self._ranks, self._clip = selector, ranks, clip
        self._gradients: dict[str, Tensor] = {}
        """Of the window, in the order of the message."""
        self._parts: dict[str, slice] = {}
        """Of the message of a rank: values, and after them as many places."""
        self._handle: int | None = None
        self._messages: Tensor | None = None
        """Of all ranks, int32 [R, n], once they are there."""

    def start(self, name: str, gradient: Tensor, rows: Tensor | None, send: Send) -> OnTheWay:  # noqa: ARG002 - sent later
        self._gradients[name] = gradient
        return _Selection(partial(self._arrive, name))

    @torch.no_grad()
    def backward_complete(self, applied_steps: int, gather: Send) -> None:
        norm = math.hypot(*(float(norm_of(gradient)) for gradient in self._gradients.values()))
        # What is not finite has to be seen by all, wherever it is: then nothing of this rank is a number.
        factor = min(1.0, self._clip / max(norm, 1e-30)) if math.isfinite(norm) else math.nan
        parts: list[Tensor] = []
        begin = 0
        for name, gradient in self._gradients.items():
            count = self._selector.count(name, tuple(gradient.shape), applied_steps)
            parts += self._take(name, gradient, factor, count)
            self._parts[name] = slice(begin, begin + 2 * count)
            begin += 2 * count
        self._handle, self._messages = gather(torch.cat(parts), "gradient.selected"), None

    def _take(self, name: str, gradient: Tensor, factor: float, count: int) -> tuple[Tensor, Tensor]:
        """Add the gradient times `factor` to what is kept, and take `count` values out of it: they, and their places, as int32."""
        kept, velocity = self.memory[f"{KEPT}/{name}"], self.memory.get(f"{VELOCITY}/{name}")
        if velocity is None:
            kept.add_(gradient, alpha=factor)
        else:
            kept.add_(velocity.mul_(self._selector.momentum).add_(gradient, alpha=factor))
        places = self._selector.select(torch, kept, count)
        values = kept.view(-1)[places]
        for remembered in (kept,) if velocity is None else (kept, velocity):
            remembered.view(-1)[places] = 0
        return values.view(torch.int32), places.to(torch.int32)

    @torch.no_grad()
    def _arrive(self, name: str) -> None:
        if self._messages is None:
            assert self._handle is not None
            self._messages = hvd.synchronize(self._handle).view(self._ranks, -1)
        total = self._gradients.pop(name).zero_().view(-1)
        # In the order of the ranks, each of whose places is another one: all ranks make the same sums.
        for message in self._messages[:, self._parts.pop(name)]:
            values, places = message.chunk(2)
            total.index_add_(0, places.long(), values.view(torch.float32))


def make_compressed(
    compression: Compression, firsts: Firsts, remembered: Mapping[str, Share], device: torch.device, ranks: int, clip: float
) -> Compressed:
    """As messages that are summed over the ranks, or as values that each of them selects (`clip`: see `Selected`)."""
    if isinstance(compression, Selector):
        return Selected(compression, firsts, remembered, device, ranks, clip)
    return Summed(compression, firsts, remembered, device)
