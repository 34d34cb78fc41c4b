"""Gradients that do not travel as they are (hvd_lm.compression), and what is remembered of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Protocol

import horovod.torch as hvd
import torch
from torch import Tensor

from hvd_lm.adapters.pytorch.memory import lasting
from hvd_lm.compression.compressors import Compressor
from hvd_lm.compression.kept import KEPT, LAST, Firsts
from hvd_lm.model.split import Share, blocks

_BLOCK = 1 << 16
"""Values that are decompressed at a time: those of gradient and memory fit a cache."""

Send = Callable[[Tensor, str], int]
"""Starts a sum over the ranks, in place, by a name; returns its handle. Or a gathering, along the first axis."""


class OnTheWay(Protocol):
    """One gradient."""

    def poll(self) -> None:
        """Send what is to be sent next, if that can be told."""

    def arrive(self) -> None:
        """Wait for what is to be applied: it is in the gradient, and what was not sent is kept."""


class Compressed(ABC):
    """The gradients of one job that are compressed."""

    exact_steps = 0
    """At the beginning."""

    def __init__(self, firsts: Firsts, remembered: Mapping[str, Share], device: torch.device) -> None:
        self._firsts = firsts
        self.names = frozenset(firsts)
        self.memory = {name: lasting(*share.shape, device=device) for name, share in remembered.items()}
        """By the names of a checkpoint."""
        self.forget()

    def forget(self) -> None:
        """Begin anew."""
        for tensor in self.memory.values():
            tensor.zero_()
        for name, first in self._firsts.items():
            if first is not None:
                self.memory[f"{LAST}/{name}"].copy_(torch.from_numpy(first))

    @abstractmethod
    def start(self, name: str, gradient: Tensor, rows: Tensor | None, send: Send) -> OnTheWay:
        """It is complete; with `rows`, all others are zeros. Collective."""

    def backward_complete(self, applied_steps: int, gather: Send) -> None:  # noqa: B027 - most messages have left by then
        """All gradients of the window have started, after so many optimizer steps. Collective."""


class Summed(Compressed):
    """As messages of a compressor."""

    def __init__(self, compressor: Compressor, firsts: Firsts, remembered: Mapping[str, Share], device: torch.device) -> None:
        super().__init__(firsts, remembered, device)
        self._compressor, self.exact_steps = compressor, compressor.exact_steps

    @torch.no_grad()
    def start(self, name: str, gradient: Tensor, rows: Tensor | None, send: Send) -> OnTheWay:
        return _Sum(self._compressor, self.memory, name, gradient, rows, send)


class _Sum:
    """One gradient on its way."""

    def __init__(
        self,
        compressor: Compressor,
        memory: dict[str, Tensor],
        name: str,
        gradient: Tensor,
        rows: Tensor | None,
        send: Send,
    ) -> None:
        self._compressor, self._gradient, self._rows, self._send = compressor, gradient, rows, send
        self._name, self._kept, self._last = name, memory[f"{KEPT}/{name}"], memory[f"{LAST}/{name}"]
        # From here on the memory of what is kept holds that and the gradient together.
        self._whole = self._kept.add_(gradient) if rows is None else self._kept[rows].add_(gradient[rows])
        self._handle = self._start(compressor.compress(torch, self._whole, self._last), "")
        self._common: Tensor | None = None
        self._message: Tensor | None = None

    def _start(self, message: Tensor, which: str) -> int:
        # The sum takes the memory of what is sent.
        return self._send(message.clone(memory_format=torch.contiguous_format), f"gradient.{self._name}{which}")

    def poll(self) -> None:
        """The second message leaves if the sum of the first ones is there."""
        if self._common is None and hvd.poll(self._handle):
            self._send_second()

    @torch.no_grad()
    def _send_second(self) -> None:
        total = hvd.synchronize(self._handle)
        self._common, self._message = self._compressor.combine(torch, self._whole, total)
        self._handle = self._start(self._message, ".second")

    @torch.no_grad()
    def arrive(self) -> None:
        if self._common is None:
            self._send_second()
        assert self._common is not None
        total = hvd.synchronize(self._handle)
        into, whole = (self._gradient, self._whole) if self._rows is None else (torch.empty_like(self._whole), self._whole)
        # Block by block: what is decompressed stays in a cache.
        for block in blocks(range(len(whole)), tuple(whole.shape), _BLOCK):
            here = slice(block.start, block.stop)
            common = self._common[here]
            into[here] = self._compressor.decompress(torch, common, total)
            whole[here] -= self._compressor.decompress(torch, common, self._message)
        if self._rows is not None:
            self._gradient.index_copy_(0, self._rows, into)
            self._kept.index_copy_(0, self._rows, whole)
        self._last.copy_(total)
