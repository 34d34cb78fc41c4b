"""Rows of looked-up parameters that a window names, on any rank: all other rows of their gradients are zero."""

from __future__ import annotations

from collections.abc import Mapping

import horovod.torch as hvd
import torch
from torch import Tensor, nn

from hvd_lm.adapters.job import Group, Job
from hvd_lm.model.split import Share


class TouchedRows:
    """Of parameters that have the same rows."""

    def __init__(self, rows: int, device: torch.device, group: Group, name: str) -> None:
        # Halves are the smallest numbers that Horovod reduces in both frameworks; any number above 0 means touched.
        self._touched_V = torch.zeros(rows, dtype=torch.float16, device=device)
        self._group, self._name = group, name
        self._handle: int | None = None
        self._rows: Tensor | None = None

    @property
    def bytes_sent(self) -> int:
        """Of a window."""
        return self._touched_V.nbytes if self._group.communicates else 0

    def note(self, rows: Tensor | None) -> None:
        """None for all."""
        self._touched_V[slice(None) if rows is None else rows.flatten()] = 1

    def start_union(self, *, is_local: bool) -> None:
        """The window is noted. Collective, unless the step `is_local` to each rank, and long done when the parameter's gradient,
        the last one, is there."""
        self._rows = None
        if self._group.communicates and not is_local:
            process_set = self._group.process_set
            self._handle = hvd.allreduce_async_(self._touched_V, name=self._name, op=hvd.Sum, process_set=process_set)

    def rows(self) -> Tensor:
        """Of the window, ascending, the same on all ranks unless its step is local; to be asked for before the next one is
        noted."""
        if self._rows is None:
            if self._handle is not None:
                hvd.synchronize(self._handle)
                self._handle = None
            self._rows = self._touched_V.nonzero().flatten()
            self._touched_V.zero_()
        return self._rows


class Touched:
    """Of all looked-up parameters of which this rank has rows."""

    def __init__(self, shares: Mapping[str, Share], weights: Mapping[str, nn.Parameter], job: Job, *, for_update: bool) -> None:
        """`for_update`: the update asks for them too, so that those are noted whose gradients do not travel."""
        self.by_name: dict[str, TouchedRows] = {}
        self._by_inputs: TouchedRows | None = None
        self._by_outputs: TouchedRows | None = None
        for name, weight in weights.items():
            looked_up, group = shares[name].parameter.looked_up, job.holders(shares[name])
            if not looked_up or not (group.communicates or for_update):
                continue
            of_rows = len(weight), weight.device, group
            if looked_up == "inputs":
                self._by_inputs = self.by_name[name] = TouchedRows(*of_rows, "touched_rows")
            else:
                self._by_outputs = self.by_name[name] = self._by_outputs or TouchedRows(*of_rows, "touched_rows.output")

    @property
    def bytes_sent(self) -> int:
        """Of a window."""
        return sum(touched.bytes_sent for touched in {self._by_inputs, self._by_outputs} if touched)

    def note_inputs(self, rows: Tensor) -> None:
        """Rows that a micro-batch of the window looked up."""
        if self._by_inputs:
            self._by_inputs.note(rows)

    def inputs_complete(self, *, is_local: bool) -> None:
        """All micro-batches of the window are noted. Collective."""
        if self._by_inputs:
            self._by_inputs.start_union(is_local=is_local)

    def note_outputs(self, rows: Tensor | None) -> None:
        """Rows of the output's weights that a backward of the window added to; None for all."""
        if self._by_outputs:
            self._by_outputs.note(rows)

    def outputs_complete(self, *, is_local: bool) -> None:
        """All backwards of the window are noted. Collective."""
        if self._by_outputs:
            self._by_outputs.start_union(is_local=is_local)
