"""Recurrent weights of which training lacks some for a whole optimizer step.

DropConnect (Wan et al. 2013), in LSTMs as of Merity et al. 2017 (arXiv:1708.02182, section 2). Cells are given a stand-in for such
a weight, which is ``stored * mask / share kept`` in training, and the stored weight where the model is read; the gradient by the
stand-in is pulled back, by the same factor, to the stored weight, before it is reduced.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hvd_lm.adapters.pytorch.memory import Weight
from hvd_lm.adapters.pytorch.products import add_to_gradient
from hvd_lm.adapters.pytorch.stages.base import Complete
from hvd_lm.model.noise import keep_probability


class WeightDrop:
    """Of the recurrent kernels among some weights."""

    def __init__(self, weights: Mapping[str, Weight], rate: float) -> None:
        """None of them has a stand-in if `rate`, the share that drops, is 0."""
        self._keep_probability = keep_probability(rate)
        self._stored = {name: weight for name, weight in weights.items() if rate and name.endswith(".recurrent_kernel")}
        self.stand_ins = {name: Weight(*stored.shape, device=stored.device) for name, stored in self._stored.items()}
        self._names: dict[nn.Parameter, str] = {stand_in: name for name, stand_in in self.stand_ins.items()}
        self._factors: dict[str, Tensor] = {}
        """[4H, P]: 0 where a weight drops."""
        self._for_training: bool | None = None
        """What the stand-ins hold is for; None if it is out of date."""

    def drop(self, masks: Mapping[str, NDArray[np.bool_]]) -> None:
        """In training, from now on; `masks` are True where a weight is kept."""
        for name, stored in self._stored.items():
            self._factors[name] = torch.from_numpy(masks[name]).to(stored.device, torch.float32).div_(self._keep_probability)
        self._for_training = None

    def weights_changed(self) -> None:
        """The stored ones."""
        self._for_training = None

    @torch.no_grad()
    def turn(self, *, training: bool) -> bool:
        """Let the stand-ins hold what a forward wants that is for `training`, or not; whether they have changed."""
        if not self._stored or self._for_training is training:
            return False
        for name, stored in self._stored.items():
            self.stand_ins[name].copy_(stored)
            if training and name in self._factors:
                self.stand_ins[name].mul_(self._factors[name])
        self._for_training = training
        return True

    def pulling_back(self, complete: Complete) -> Complete:
        """Told of a stand-in, it adds the gradient to that of the stored weight, and tells `complete` of this one."""

        def pull_back(weight: nn.Parameter) -> None:
            if name := self._names.get(weight):
                gradient, weight = weight.grad, self._stored[name]
                assert gradient is not None
                add_to_gradient(weight, gradient.mul_(self._factors[name]) if name in self._factors else gradient)
                self.stand_ins[name].grad = None
            complete(weight)

        return pull_back if self._stored else complete
