"""Late gradients: each is applied one optimizer step late, so that its reduction hides behind the next window.

Pipe-SGD of depth 2 (Li et al. 2018, arXiv:1811.03619). Adapters keep what is on its way; here is when it may not be any more.
"""

from __future__ import annotations

from hvd_lm.adapters.base import Adapter
from hvd_lm.errors import TrainingError
from hvd_lm.training.judgement import not_applied
from hvd_lm.training.loss_scale import LossScale


class LateGradients:
    """Those of one leg; nothing happens in a run without them."""

    def __init__(self, adapter: Adapter, loss_scale: LossScale | None) -> None:
        self._adapter, self._loss_scale = adapter, loss_scale

    def catch_up(self, step: int) -> None:
        """Apply the gradient of `step` if it is still on its way: before weights are validated or written.

        What makes a run end is noted (`job.trouble`), on all ranks alike. Collective.
        """
        outcome = self._adapter.catch_up()
        with self._adapter.job.trouble.noted():
            if outcome and self._loss_scale:
                self._loss_scale.update(overflow=not outcome.applied)
            elif outcome and not outcome.applied:
                raise TrainingError(not_applied(f"the gradient norm is {outcome.norm}", step))
