"""The output of a model many of whose tokens have no target, as those of a source: they are left out before there are logits.

Shapes: T time, B sequences, N tokens, H units.
"""

from __future__ import annotations

from torch import Tensor

from hvd_lm.adapters.pytorch.stages.output import Output, accumulate_cross_entropy, cross_entropies
from hvd_lm.data.sources import IGNORED


class PickedOutput(Output):
    """Tokens that have a target, judged."""

    def _backward_of_tokens(self, outputs_NH: Tensor, targets_N: Tensor, weights_N: Tensor) -> tuple[Tensor, Tensor]:
        picked = _picked(targets_N)
        rows = outputs_NH[picked], self.kernel, self.bias, targets_N[picked], weights_N[picked]
        loss, of_picked = accumulate_cross_entropy(*rows, ignored=IGNORED)
        return loss, outputs_NH.new_zeros(outputs_NH.shape).index_copy_(0, picked, of_picked)

    def losses(self, outputs_TBH: Tensor, targets_N: Tensor) -> Tensor:
        picked = _picked(targets_N)
        of_picked = cross_entropies(outputs_TBH.flatten(0, 1)[picked], self.kernel, self.bias, targets_N[picked])
        return of_picked.new_zeros(targets_N.shape).index_copy_(0, picked, of_picked)


def _picked(targets_N: Tensor) -> Tensor:
    """Places of those that count; one at least, so that there is something to compute with."""
    picked = (targets_N != IGNORED).nonzero()[:, 0]
    return picked if len(picked) else picked.new_zeros(1)
