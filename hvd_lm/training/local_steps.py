"""Local SGD: ranks make optimizer steps of their own, and have their weights averaged after every few of them.

Stich 2019 (arXiv:1805.09767); with steps that all make together at the beginning it is post-local SGD (Lin et al. 2020,
arXiv:1808.07217).
"""

from __future__ import annotations

from hvd_lm.adapters.base import Adapter


class LocalSteps:
    """Those of one leg; nothing happens in a run whose gradients are summed in every step."""

    def __init__(self, adapter: Adapter) -> None:
        """All ranks have the same weights and moments."""
        self._adapter, self._communication = adapter, adapter.communication
        self.is_own = False
        """Whether the last step was each rank's own."""
        self._averaged_step: int | None = None

    def begin(self) -> bool:
        """Whether the step that is about to be made is each rank's own."""
        communicates = self._adapter.job.groups["all"].communicates
        self.is_own = communicates and self._communication.is_local(self._adapter.applied_steps)
        return self.is_own

    def average(self, step: int, *, wanted: bool) -> int:
        """Give all ranks the mean of their weights after `step`, if it is time, or `wanted`; the bytes that a rank has sent.
        Collective."""
        communication = self._communication
        is_time = (step - communication.reduce_start_steps) % communication.reduce_every == 0
        if not self.is_own or self._averaged_step == step or not (is_time or wanted):
            return 0
        self._averaged_step = step
        return self._adapter.average(self._adapter.weights(copy=False))

    def average_all(self, step: int) -> None:
        """Weights and moments, as a checkpoint has them: a run that goes on from it is where this one is. Collective."""
        if self.is_own:
            self.average(step, wanted=True)
            self._adapter.average(self._adapter.optimizer_state(copy=False).moments)
