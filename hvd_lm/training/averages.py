"""Averaged SGD: from when validations have stopped getting better on, the averages of the weights are what is judged and kept.

The trigger is that of NT-ASGD (Merity et al. 2017, arXiv:1708.02182, Algorithm 1). Training goes on with the plain weights. While
they train, the averages are the moments ``average/<weight name>``; in a checkpoint the two have changed places, so that whoever
reads its weights reads the averages.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from hvd_lm.adapters.base import Adapter, OptimizerState
from hvd_lm.checkpoint.format import Checkpoint
from hvd_lm.model.split import blocks
from hvd_lm.training.averaging import Averaging

_MOMENT = "average"


class Averages:
    """Those of one leg; nothing happens in a run with another optimizer."""

    def __init__(self, adapter: Adapter) -> None:
        self._adapter = adapter
        update = adapter.update_config
        self._patience = update.average_patience if update and update.optimizer == "asgd" else None
        self.averaging = Averaging()

    @property
    def are_there(self) -> bool:
        """Whether a step has been averaged."""
        since = self.averaging.since
        return since is not None and self._adapter.applied_steps > since

    def go_on(self, averaging: Averaging) -> None:
        """From a checkpoint, whose weights and moments the adapter holds."""
        if self._patience is None:
            return
        self.averaging = averaging
        self._adapter.set_applied_steps(self._adapter.applied_steps, averaging.since)
        self._exchange()

    def note(self, loss: float) -> None:
        """Begin to average after this step if the loss of a validation is not below the lowest but for the last few before it."""
        if self._patience is None or self.averaging.since is not None:
            return
        earlier = self.averaging.losses[: -self._patience]
        if earlier and loss > min(earlier):
            self.averaging = Averaging(since=self._adapter.applied_steps)
            self._adapter.set_applied_steps(self._adapter.applied_steps, self.averaging.since)
        elif math.isfinite(loss):
            self.averaging = replace(self.averaging, losses=(*self.averaging.losses, loss))

    @contextmanager
    def judged(self) -> Iterator[None]:
        """The weights are the averages meanwhile."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        """Weights and averages, in place, block by block."""
        if not self.are_there:
            return
        adapter = self._adapter
        weights, averages = dict(adapter.weights(copy=False)), dict(adapter.optimizer_state(copy=False).moments)
        for name, share in adapter.shares.items():
            if not share.rows:
                continue
            weight, average = weights.pop(name), averages.pop(f"{_MOMENT}/{name}")
            for rows in blocks(share.rows, share.shape):
                here = slice(rows.start - share.rows.start, rows.stop - share.rows.start)
                plain, averaged = np.array(weight[here]), np.array(average[here])
                adapter.set_rows(name, rows.start, averaged)
                adapter.set_rows(f"{_MOMENT}/{name}", rows.start, plain)

    def kept(self, checkpoint: Checkpoint) -> Checkpoint:
        """As it is written: its weights are the averages."""
        if not self.are_there:
            return checkpoint
        state = checkpoint.optimizer_state
        plain = {f"{_MOMENT}/{name}": weight for name, weight in checkpoint.weights.items()}
        averages = {name: state.moments[f"{_MOMENT}/{name}"] for name in checkpoint.weights}
        return replace(checkpoint, weights=averages, optimizer_state=OptimizerState(state.applied_steps, plain))
