"""The optimizer divided over the ranks: each updates some rows of every weight for all of them (ZeRO, Rajbhandari et al. 2020,
arXiv:1910.02054, stage 1), and so needs the moments of these alone."""

from __future__ import annotations

from collections.abc import Mapping

import horovod.torch as hvd
from torch import Tensor, nn

from hvd_lm.adapters.job import Job
from hvd_lm.model.split import Share


class OptimizerSplit:
    """Views of the rows that this rank updates; of a weight that is not divided, the weight."""

    def __init__(self, weights: Mapping[str, nn.Parameter], moment_shares: Mapping[str, Share], job: Job) -> None:
        self._weights, self._job = weights, job
        self._divided = {name: share for name, share in moment_shares.items() if share.divided_over == "data"}
        self.updated = {
            name: nn.Parameter(self.rows_of(name, weight.detach())) if name in self._divided else weight
            for name, weight in weights.items()
        }

    def rows_of(self, name: str, tensor: Tensor) -> Tensor:
        """Those that this rank updates; all of what is not divided."""
        if name not in self._divided:
            return tensor
        rows = self._divided[name].rows
        return tensor[rows.start : rows.stop]

    def take_gradients(self) -> None:
        """Of these rows, from the weights' own."""
        for name in self._divided:
            gradient = self._weights[name].grad
            assert gradient is not None
            self.updated[name].grad = self.rows_of(name, gradient)

    def share_updated(self) -> None:
        """Give all ranks the rows that each of them has updated. Collective."""
        group = self._job.groups["data"]
        # In place, where an all-gather would take memory for a second copy of all weights.
        handles = [
            hvd.broadcast_async_(
                self._weights[name].data[part.start : part.stop], root, name=f"updated.{name}.{root}", process_set=group.process_set
            )
            for name, share in self._divided.items()
            for root, part in zip(group.ranks, share.parts, strict=True)
        ]
        for handle in handles:
            hvd.synchronize(handle)
