"""The update of an optimizer step, and the course of its rate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from hvd_lm.errors import require, require_positive


@dataclass(frozen=True)
class OptimizerConfig:
    """The update of an optimizer step."""

    optimizer: Literal["adam", "adamw", "sgd", "asgd", "adagrad"] = "adam"
    """Adam (Kingma & Ba 2015, arXiv:1412.6980, with bias correction and epsilon outside of it as in Algorithm 1), AdamW, whose
    --weight-decay is not part of the gradient (Loshchilov & Hutter 2019, arXiv:1711.05101), SGD with --momentum, asgd,
    which is SGD whose weights are averaged from when --average-patience says on (Merity et al. 2017, arXiv:1708.02182), or Adagrad
    (Duchi et al. 2011) with --initial-accumulator and no epsilon."""
    learning_rate: float = 1e-3
    """Peak learning rate, before --learning-rate-scaling."""
    learning_rate_scaling: Literal["none", "linear", "sqrt"] = "none"
    """How the rate grows with the sequences in an optimizer step (ranks x batch size x backward passes), relative to
    --base-batch-size: linear is the rule of Goyal et al. 2017 (arXiv:1706.02677)."""
    base_batch_size: int = 80
    """Sequences in an optimizer step for which --learning-rate holds."""
    warmup_steps: int = 0
    """Optimizer steps over which the rate rises linearly to its peak."""
    decay: Literal["constant", "linear", "cosine", "exponential", "step", "milestones", "plateau"] = "constant"
    """Course of the rate after the warm-up. linear, cosine, exponential: down to --final-learning-rate-fraction at the last step.
    step: by --decay-factor with every epoch after --decay-start-epochs (Zaremba et al. 2014, arXiv:1409.2329). milestones: by
    --decay-factor after each of --decay-milestones. plateau: by --decay-factor at every validation whose loss is not below the
    lowest before it."""
    final_learning_rate_fraction: float = 0.1
    """linear, cosine, exponential: rate at the last step, relative to the peak."""
    decay_factor: float = 0.25
    """step, milestones, plateau: what the rate is multiplied by."""
    decay_start_epochs: int = 1
    """step: epochs at the beginning of a run at the peak."""
    decay_milestones: tuple[int, ...] = ()
    """milestones: epochs, counted from 1, after which the rate falls."""
    clip: float | None = 1.0
    """Largest global norm of the gradient; applied after the reduction. None: no clipping."""
    weight_decay: float = 0.0
    """adam, sgd, asgd: so much of every weight is added to its gradient, after clipping (L2, as in PyTorch's optimizers). adamw:
    every weight loses rate x this of itself in a step (PyTorch's AdamW takes 0.01). Biases and words that did not occur too."""
    beta1: float = 0.9
    """Adam: decay of the first moment."""
    beta2: float = 0.999
    """Adam: decay of the second moment."""
    epsilon: float = 1e-8
    """Adam: added to the square root of the bias-corrected second moment."""
    momentum: float = 0.0
    """SGD: momentum."""
    average_patience: int = 5
    """asgd: averages begin after a validation whose loss is above the lowest of all before it but the last so many."""
    initial_accumulator: float = 0.1
    """Adagrad: what the sum of squared gradients begins with, as TensorFlow's does (PyTorch's with 0, and an epsilon)."""

    def __post_init__(self) -> None:
        require_positive(self, "learning_rate", "epsilon", "initial_accumulator")
        require(self.base_batch_size >= 1, f"--base-batch-size must be at least 1, not {self.base_batch_size}")
        require(self.average_patience >= 1, f"--average-patience must be at least 1, not {self.average_patience}")
        require(self.warmup_steps >= 0, f"--warmup-steps must not be negative, not {self.warmup_steps}")
        require(self.clip is None or self.clip > 0, f"--clip must be above 0 (or None), not {self.clip}")
        require(
            0 < self.final_learning_rate_fraction <= 1,
            f"--final-learning-rate-fraction must be in (0, 1], not {self.final_learning_rate_fraction}",
        )
        require(0 < self.decay_factor < 1, f"--decay-factor must be in (0, 1), not {self.decay_factor}")
        require(self.decay_start_epochs >= 0, f"--decay-start-epochs must not be negative, not {self.decay_start_epochs}")
        milestones = " ".join(map(str, self.decay_milestones))
        require(
            list(self.decay_milestones) == sorted({at for at in self.decay_milestones if at >= 1}),
            f"--decay-milestones must be numbers of epochs from 1 on, one above the other, not {milestones}",
        )
        require(
            self.decay != "milestones" or bool(self.decay_milestones),
            "--decay milestones needs --decay-milestones, the epochs after which the rate falls",
        )
        require(0 <= self.weight_decay < math.inf, f"--weight-decay must be at least 0 and finite, not {self.weight_decay}")
        require(
            not self.weight_decay or not self.keeps_absent_rows,
            f"--weight-decay does not go with --optimizer {self.optimizer}, which leaves words that did not occur as they are: "
            "take adam, adamw, sgd or asgd",
        )
        for name in ("beta1", "beta2", "momentum"):
            require(0 <= getattr(self, name) < 1, f"--{name} must be in [0, 1), not {getattr(self, name)}")

    @property
    def is_adam(self) -> bool:
        """Whether it has Adam's moments, wherever its weight decay goes."""
        return self.optimizer in ("adam", "adamw")

    @property
    def moments(self) -> tuple[str, ...]:
        """What the update remembers of each weight, beside it."""
        if self.is_adam:
            return ("first", "second")
        if self.optimizer == "adagrad":
            return ("accumulator",)
        if self.optimizer == "asgd":
            return ("average",)
        return ("momentum",) if self.momentum else ()

    @property
    def initial_moment(self) -> float:
        """What every value of the moments is before the first step."""
        return self.initial_accumulator if self.optimizer == "adagrad" else 0.0

    @property
    def keeps_absent_rows(self) -> bool:
        """Whether a row without a gradient stays as it is, moments too: then the rows that a window touched are all to update."""
        return self.optimizer == "adagrad"
