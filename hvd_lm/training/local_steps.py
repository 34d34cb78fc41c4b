"""Local SGD: ranks make optimizer steps of their own, and have their weights averaged after every few of them.

Stich 2019 (arXiv:1805.09767); with steps that all make together at the beginning it is post-local SGD (Lin et al. 2020,
arXiv:1808.07217).
"""

from __future__ import annotations

import math

from hvd_lm.adapters.base import Adapter, StepResult
from hvd_lm.job.levers import patience

SHARE = 0.02
"""Of the time, that ranks take to tell each other whether one of them is in trouble, or asked to stop."""
SHARE_OF_PATIENCE = 0.25
"""How much of the time after which a rank has waited in vain they may take, as fast ones wait for slower ones then."""


def told_every(message: float, step: float, every: int, patient: float) -> int:
    """How many steps of a rank's own, of `step` seconds, go by for each that tells the others, in a `message` seconds long.

    So many that this takes no more than `SHARE` of the time; but no more than the `every` from one average to the next, and no more
    than go by in a part of the seconds for which ranks are `patient` (0: for ever).
    """
    if step <= 0:
        return 1
    most = min(every, SHARE_OF_PATIENCE * patient / step) if patient else every
    return max(1, min(int(most), math.ceil(message / (SHARE * step))))


class LocalSteps:
    """Those of one leg; nothing happens in a run whose gradients are summed in every step."""

    def __init__(self, adapter: Adapter) -> None:
        """All ranks have the same weights and moments."""
        self._adapter, self._communication = adapter, adapter.communication
        self._patience = patience(adapter.communication)
        self.is_own = False
        """Whether the last step was each rank's own."""
        self._averaged_step: int | None = None
        self._tells_at, self._told = 0, 0
        """The next step that is to tell, and how many have told."""

    def begin(self, step: int, *, wanted: bool) -> bool:
        """Whether step number `step`, which is about to be made, is each rank's own; `wanted`: its weights will be averaged."""
        communicates = self._adapter.job.groups["all"].communicates
        self.is_own = communicates and self._communication.is_local(self._adapter.applied_steps)
        self._adapter.tells = not self.is_own or wanted or self._is_time(step) or step >= self._tells_at
        return self.is_own

    def hear(self, step: int, outcome: StepResult) -> bool:
        """Whether `step` has told anything; one that was each rank's own says when to tell the next time, the same on all ranks."""
        if self.is_own and self._adapter.tells:
            self._told += 1
            message = outcome.waits.get("communication_seconds_least", 0.0)
            # What the first one hears of is a step that was made together, whose wait was one for gradients.
            most = self._communication.reduce_every if self._told > 1 else 1
            self._tells_at = step + told_every(message, outcome.step_seconds, most, self._patience)
        return self._adapter.tells

    def _is_time(self, step: int) -> bool:
        """Whether weights are averaged after `step`."""
        return (step - self._communication.reduce_start_steps) % self._communication.reduce_every == 0

    def average(self, step: int, *, wanted: bool) -> int:
        """Give all ranks the mean of their weights after `step`, if it is time, or `wanted`; the bytes that a rank has sent.
        Collective."""
        if not self.is_own or self._averaged_step == step or not (self._is_time(step) or wanted):
            return 0
        self._averaged_step = step
        return self._adapter.average(self._adapter.weights(copy=False))

    def average_all(self, step: int) -> None:
        """Weights and moments, as a checkpoint has them: a run that goes on from it is where this one is. Collective."""
        if self.is_own:
            self.average(step, wanted=True)
            self._adapter.average(self._adapter.optimizer_state(copy=False).moments)
