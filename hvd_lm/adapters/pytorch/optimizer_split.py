"""The optimizer divided over the ranks: each updates some rows of every weight for all of them (ZeRO, Rajbhandari et al. 2020,
arXiv:1910.02054, stage 1), and so needs the moments of these alone.

Horovod's reduce-scatter takes memory for three copies of a gradient over Gloo (measured), its all-gather for one of a weight; here
a few blocks are on their way at a time, and what comes goes to where it belongs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import horovod.torch as hvd
import torch
from torch import Tensor, nn

from hvd_lm.adapters.job import Job
from hvd_lm.model.split import BROADCAST, ON_THE_WAY, SUMMED_VALUES, Share, rounds


class OptimizerSplit:
    """Views of the rows that this rank updates; of a weight that is not divided, the weight."""

    def __init__(self, weights: Mapping[str, nn.Parameter], moment_shares: Mapping[str, Share], job: Job, *, halves: bool) -> None:
        """With `halves` gradients travel as float16; weights never do."""
        self._weights, self._group, self._halves = weights, job.groups["data"], halves
        self.divided = {name: share for name, share in moment_shares.items() if share.divided_over == "data"}
        self.updated = {
            name: nn.Parameter(self.rows_of(name, weight.detach())) if name in self.divided else weight
            for name, weight in weights.items()
        }
        # Beside the backward: who sends the next block when one has arrived.
        self._courier = ThreadPoolExecutor(1, thread_name_prefix="gradients") if self.divided else None

    def rows_of(self, name: str, tensor: Tensor) -> Tensor:
        """Those that this rank updates; all of what is not divided."""
        if name not in self.divided:
            return tensor
        rows = self.divided[name].rows
        return tensor[rows.start : rows.stop]

    def start_sum(self, name: str, gradient: Tensor) -> Callable[[], None]:
        """Sum the rows of `gradient` that this rank updates over the ranks, in place; what waits for that. Collective."""
        assert self._courier
        arriving = self._courier.submit(self._sum, name, gradient)
        return lambda: arriving.result()

    @torch.no_grad()
    def _sum(self, name: str, gradient: Tensor) -> None:
        on_the_way: deque[tuple[int, Tensor]] = deque()

        def take() -> None:
            handle, own = on_the_way.popleft()
            received, _ = hvd.synchronize(handle)
            torch.sum(received.to(own.dtype).view(self._group.size, *own.shape), 0, out=own)

        share = self.divided[name]
        for number, blocks in enumerate(rounds(share, max(1, SUMMED_VALUES // self._group.size))):
            if len(on_the_way) == ON_THE_WAY:
                take()
            sent = torch.cat([gradient[block.start : block.stop] for block in blocks])
            splits = torch.tensor([len(block) for block in blocks], dtype=torch.int32)
            handle = hvd.alltoall_async(
                sent.half() if self._halves else sent, splits, f"gradient.{name}.{number}", process_set=self._group.process_set
            )
            own = blocks[share.place]
            on_the_way.append((handle, gradient[own.start : own.stop]))
        while on_the_way:
            take()

    def take_gradients(self) -> None:
        """Of the rows that this rank updates, from the weights' own."""
        for name in self.divided:
            gradient = self._weights[name].grad
            assert gradient is not None
            self.updated[name].grad = self.rows_of(name, gradient)

    def share_updated(self) -> None:
        """Give all ranks the rows that each of them has updated. Collective."""
        handles = [
            hvd.broadcast_async_(
                self._weights[name].data[block.start : block.stop],
                root,
                name=f"updated.{name}.{block.start}",
                process_set=self._group.process_set,
            )
            for name, share in self.divided.items()
            for blocks in rounds(share, BROADCAST)
            for root, block in zip(self._group.ranks, blocks, strict=True)
            if block
        ]
        for handle in handles:
            hvd.synchronize(handle)
