"""How long ranks wait for gradients: each knows its own wait, and tells it to the others beside the next loss.

All that wait alike wait for the link; where one waits and another does not, the first one waits for the second.
"""

from __future__ import annotations

from collections.abc import Sequence

from hvd_lm.job.topology import Topology


class Waits:
    """Of one job. Seconds from the end of a backward until its gradients are there, unpacked."""

    def __init__(self, topology: Topology) -> None:
        self._rank, self._size = topology.rank, topology.size
        self._own: float | None = None
        self._of_all: list[float] = []

    @property
    def told(self) -> list[float]:
        """What this rank tells, to be summed over all of them: its wait in its place; nothing where it is alone."""
        if self._size == 1:
            return []
        return [(self._own or 0.0) if rank == self._rank else 0.0 for rank in range(self._size)]

    def hear(self, told: Sequence[float]) -> None:
        """The sum of what all ranks tell: of the step before, if there was one."""
        self._of_all = [] if self._own is None else list(told)

    def note(self, seconds: float) -> None:
        """This rank's, of this step."""
        self._own = seconds

    def figures(self) -> dict[str, float]:
        """For the metrics: this rank's wait in this step; and the shortest and the longest of the step before."""
        if self._size == 1 or self._own is None:
            return {}
        figures = {"communication_seconds": self._own}
        if self._of_all:
            least, most = min(self._of_all), max(self._of_all)
            figures |= {"communication_seconds_least": least, "communication_seconds_most": most}
        return figures
