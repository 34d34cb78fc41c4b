"""How gradients travel."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hvd_lm.compression.limits import require_local, require_one_way, require_powersgd, require_topk
from hvd_lm.errors import require, require_positive
from hvd_lm.paths import make_paths


@dataclass(frozen=True)
class CommunicationConfig:
    """How gradients travel. Levers that Horovod reads from its environment are left alone unless set here;
    what horovodrun was told wins over both."""

    backward_passes_per_step: int = 10
    """Micro-batches accumulated on a rank before one reduction and one optimizer step (N)."""
    target_batch: int | None = None
    """Tokens of an optimizer step of all ranks, however many they are, as near as whole micro-batches come: in place of
    --backward-passes-per-step."""
    compression: Literal["none", "fp16", "powersgd", "topk"] = "none"
    """What travels of gradients. none: they, as float32. fp16: as halves. powersgd: matrices as products of two narrow ones
    (Vogels et al. 2019, arXiv:1905.13727). topk: of matrices the largest values of each rank (Lin et al. 2018, arXiv:1712.01887).
    The last two are algorithms of their own; what is not sent is kept for the next step."""
    powersgd_rank: int = 4
    """powersgd: columns of the two matrices. More send more, and are nearer to the gradient."""
    powersgd_start_steps: int = 100
    """powersgd: optimizer steps at the beginning of a run that send gradients as they are."""
    powersgd_halves: bool = False
    """powersgd: send the two matrices as halves; what is rounded off the second is kept for the next step."""
    topk_share: float = 0.001
    """topk: of the values of a matrix, the share that a rank sends. From a half on all of them travel."""
    topk_momentum: float = 0.0
    """topk: momentum of what is kept, where each rank has its own, in place of --momentum; for --optimizer sgd."""
    topk_start_steps: int = 100
    """topk: optimizer steps at the beginning of a run that send more: first a quarter, at last 0.004."""
    reduce_every: int = 1
    """Optimizer steps that each rank makes by itself before their weights are averaged (local SGD, Stich 2019, arXiv:1805.09767),
    an algorithm of its own. 1: all ranks make every step together."""
    reduce_start_steps: int = 0
    """--reduce-every above 1: optimizer steps at the beginning of a run that are made together."""
    late_gradients: bool = False
    """Apply each gradient one optimizer step late, so that its reduction hides behind the next window (Pipe-SGD, Li et al. 2018,
    arXiv:1811.03619), an algorithm of its own."""
    reduction: Literal["sum", "adasum"] = "sum"
    """sum: exact mean gradient over the window. adasum: Horovod's adaptive summation (Maleki et al. 2020,
    arXiv:2006.02924), an algorithm of its own; needs MPI or NCCL, 2^k ranks, and --compression none."""
    loss_scale: float | None = None
    """fp16: factor on the loss, to begin with, that keeps small gradients from vanishing on the wire. Unless given: 8192, or where
    the run was that --resume goes on with."""
    loss_scale_growth_steps: int = 2000
    """fp16: steps without overflow after which the loss scale doubles; it halves at an overflow."""
    gradient_predivide_factor: float = 1.0
    """Divide gradients by this before their sum over the ranks, and multiply after it: room for fp16 sums."""
    fusion_threshold_mb: int | None = None
    """Size of the buffer in which Horovod joins small tensors; with 0 sums are repeatable, bit for bit. Unless given: 0, or what
    autotune finds (HOROVOD_FUSION_THRESHOLD)."""
    backward_tokens: int = 1024
    """Micro-batches of a rank, up to so many tokens together, share one backward that goes layer by layer: the upper layers'
    gradients then travel beside the lower layers' backward. More take memory for their activations."""
    cycle_time_ms: float | None = None
    """Pause between Horovod's negotiation cycles (HOROVOD_CYCLE_TIME)."""
    autotune: bool = False
    """Let Horovod search fusion threshold and cycle time while training (HOROVOD_AUTOTUNE)."""
    timeline_filename: Path | None = None
    """File for Horovod's timeline, readable in chrome://tracing (HOROVOD_TIMELINE)."""
    hierarchical_allreduce: bool = False
    """Reduce inside each host first; NCCL with MPI only (HOROVOD_HIERARCHICAL_ALLREDUCE)."""
    link: Path | None = None
    """What hvd-lm measure wrote of this link, with --config of this run: the run says what a step should take, metrics.jsonl and
    hvd-lm report have it beside what it took, and a run that stays behind is told why."""
    plan: Literal["auto"] | None = None
    """auto: measure this link and this model's compute when the run begins, and take what is predicted to be fastest of none, fp16,
    and what is asked for besides: --compression powersgd or topk, --reduce-every, --late-gradients."""
    stall_shutdown_seconds: int = 600
    """End the job when a rank has kept the others waiting that long, from the start on; 0 for never
    (HOROVOD_STALL_SHUTDOWN_TIME_SECONDS)."""

    def __post_init__(self) -> None:
        make_paths(self, "timeline_filename", "link")
        require(
            self.backward_passes_per_step >= 1,
            f"--backward-passes-per-step must be at least 1, not {self.backward_passes_per_step}",
        )
        require_positive(self, "loss_scale", "gradient_predivide_factor")
        require_powersgd(self.powersgd_rank, self.powersgd_start_steps)
        require_topk(self.topk_share, self.topk_momentum, self.topk_start_steps)
        require_local(self.reduce_every, self.reduce_start_steps)
        require(
            self.loss_scale_growth_steps >= 1, f"--loss-scale-growth-steps must be at least 1, not {self.loss_scale_growth_steps}"
        )
        require(
            self.fusion_threshold_mb is None or self.fusion_threshold_mb >= 0,
            f"--fusion-threshold-mb must not be negative, not {self.fusion_threshold_mb}",
        )
        require(self.backward_tokens >= 0, f"--backward-tokens must not be negative, not {self.backward_tokens}")
        require(self.cycle_time_ms is None or self.cycle_time_ms > 0, f"--cycle-time-ms must be above 0, not {self.cycle_time_ms}")
        require(self.stall_shutdown_seconds >= 0, "--stall-shutdown-seconds must not be negative")
        require(self.plan in (None, "auto"), f"--plan must be auto, not {self.plan}")
        require_one_way(self)

    @property
    def sums_exactly(self) -> bool:
        """Whether what is applied in each step is the sum of its own gradients, but for rounding."""
        is_sum = self.compression in ("none", "fp16") and self.reduction == "sum"
        return is_sum and self.reduce_every == 1 and not self.late_gradients

    def is_local(self, applied_steps: int) -> bool:
        """Whether the optimizer step after so many is each rank's own."""
        return self.reduce_every > 1 and applied_steps >= self.reduce_start_steps
