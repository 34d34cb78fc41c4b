"""Gradients that travel as messages of a compressor (hvd_lm.compression.compressors), and what is remembered of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import horovod.torch as hvd
import torch
from torch import Tensor

from hvd_lm.adapters.pytorch.memory import lasting
from hvd_lm.compression.compressors import Compressor
from hvd_lm.compression.kept import KEPT, LAST
from hvd_lm.model.split import Share, blocks
from hvd_lm.model.weights import Array

_BLOCK = 1 << 16
"""Values that are decompressed at a time: those of gradient and memory fit a cache."""

Send = Callable[[Tensor, str], int]
"""Starts a sum over the ranks, in place, by a name; returns its handle."""


class Compressed:
    """Those of one job."""

    def __init__(
        self, compressor: Compressor, firsts: Mapping[str, Array], remembered: Mapping[str, Share], device: torch.device
    ) -> None:
        """`firsts`: by the names of the parameters that are compressed, what they begin with."""
        self._compressor, self._firsts, self._device = compressor, firsts, device
        self.names = frozenset(firsts)
        self.exact_steps = compressor.exact_steps
        """At the beginning."""
        self.memory = {name: lasting(*share.shape, device=device) for name, share in remembered.items()}
        """By the names of a checkpoint."""
        self.forget()

    def forget(self) -> None:
        """Begin anew."""
        for name, first in self._firsts.items():
            self.memory[f"{KEPT}/{name}"].zero_()
            self.memory[f"{LAST}/{name}"].copy_(torch.from_numpy(first))

    @torch.no_grad()
    def start(self, name: str, gradient: Tensor, rows: Tensor | None, send: Send) -> CompressedSum:
        """Sum `gradient`; with `rows`, these alone, as the others are zeros. Collective."""
        return CompressedSum(self._compressor, self.memory, name, gradient, rows, send)


class CompressedSum:
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
        """Send the second message if the sum of the first ones is there."""
        if self._common is None and hvd.poll(self._handle):
            self._send_second()

    @torch.no_grad()
    def _send_second(self) -> None:
        total = hvd.synchronize(self._handle)
        self._common, self._message = self._compressor.combine(torch, self._whole, total)
        self._handle = self._start(self._message, ".second")

    @torch.no_grad()
    def arrive(self) -> None:
        """Wait for the sum: it is in the gradient, and what was not sent is kept."""
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
