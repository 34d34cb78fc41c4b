"""How long ranks wait for gradients: each knows its own wait, and tells it to the others beside the next loss.

All that wait alike wait for the link; where one waits and another does not, the first one waits for the second.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from hvd_lm.job.topology import Topology


class Waits:
    """Of one job. Seconds from the end of a backward until its gradients are there, unpacked; and of whole steps."""

    def __init__(self, topology: Topology) -> None:
        self._rank, self._size = topology.rank, topology.size
        self._own: float | None = None
        self._of_all: list[float] = []
        self._is_told, self._steps, self._began, self._own_step_seconds = True, 0, time.perf_counter(), 0.0
        self.step_seconds = 0.0
        """Mean of all ranks, of the steps until the last one of which ranks told each other but one."""

    @property
    def told(self) -> list[float]:
        """What this rank tells, to be summed over all of them: its wait in its place, and its part of a step's mean seconds;
        nothing where it is alone."""
        if self._size == 1:
            return []
        waits = [(self._own or 0.0) if rank == self._rank else 0.0 for rank in range(self._size)]
        return [*waits, self._own_step_seconds / self._size]

    def hear(self, told: Sequence[float] | None) -> None:
        """The sum of what all ranks tell, of the last step that told before, if there was one; None where none tells anything."""
        self._is_told = told is not None
        if told:
            *waits, self.step_seconds = told
            self._of_all = [] if self._own is None else waits

    def note(self, seconds: float) -> None:
        """This rank's, of this step."""
        self._steps += 1
        if self._is_told:
            now, self._own = time.perf_counter(), seconds
            self._own_step_seconds, self._began, self._steps = (now - self._began) / self._steps, now, 0

    def figures(self) -> dict[str, float]:
        """For the metrics: this rank's wait in this step; and the shortest and the longest of the last step before that told."""
        if self._size == 1 or self._own is None:
            return {}
        if not self._is_told:
            return {"communication_seconds": 0.0}
        figures = {"communication_seconds": self._own}
        if self._of_all:
            least, most = min(self._of_all), max(self._of_all)
            figures |= {"communication_seconds_least": least, "communication_seconds_most": most}
        return figures
