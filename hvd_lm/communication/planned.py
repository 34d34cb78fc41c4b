"""What a plan is: settings with what is predicted of each, in the order of preference, and the pick."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from hvd_lm.config import CommunicationConfig

Compression = Literal["none", "fp16", "powersgd"]
COMPRESSIONS: tuple[Compression, ...] = get_args(Compression)
"""In the order of what they change in learning. Whatever else the run asks for (see `ways`) comes after them."""
Limit = Literal["compute", "batch", "bandwidth", "latency"]


@dataclass(frozen=True)
class Setting:
    """What may be set, and what is predicted of it. Times are of an optimizer step, in seconds."""

    ranks: int
    backward_passes_per_step: int
    compression: Compression | Literal["topk"]
    reduce_every: int
    late_gradients: bool
    global_batch: int
    """Tokens of a step, all ranks."""
    is_near_target: bool
    """Whether it may be picked: its global batch is no more than twice, and no less than half, the target."""
    is_extrapolated: bool
    """Whether the link was measured with other ranks."""
    step_seconds: float
    step_seconds_low: float
    """With the link at its best, as far as its points are from its fits (see `band.bounds`)."""
    step_seconds_high: float
    """With the link at its worst."""
    forward_seconds: float
    backward_seconds: float
    contention_seconds: float
    """That both take longer beside communication."""
    exposed_seconds: float
    """Communication that nothing hides."""
    compression_seconds: float
    averaging_seconds: float
    """Of weights, with reduce_every."""
    update_seconds: float
    sent_bytes: float
    """Of a rank, on their way out."""
    memory_bytes: float
    """Of a rank (see `memory.memory_of_rank`)."""
    tokens_per_second: float
    """Of all ranks."""
    scaling_efficiency: float
    """Tokens a second over those of as many ranks that neither communicate nor compress."""
    scaling_efficiency_low: float
    scaling_efficiency_high: float

    @property
    def way(self) -> str:
        """How gradients, or weights, travel, in a word; as the keys of `ways`."""
        return way_of(self)

    @property
    def changes(self) -> tuple[int, int, str]:
        """What it changes in learning, to be compared."""
        exact = list[str](COMPRESSIONS)
        return (exact.index(self.way) if self.way in exact else len(exact), self.reduce_every, self.way)


@dataclass(frozen=True)
class Plan:
    """All settings, in the order of preference, and the pick."""

    target_batch: int
    """Tokens of a step."""
    measured_ranks: int
    limit: Limit
    """What keeps the pick, with gradients as they are, from more tokens a second."""
    explanation: tuple[str, str, str]
    """What limits, what the pick does about it, and what it costs in learning."""
    pick: Setting
    settings: tuple[Setting, ...]
    """The pick first; those that are not near the target last."""
    left_out: tuple[str, ...]
    """Ways that do not go with the run, and why."""
    other_links: dict[str, tuple[Setting, ...]] = field(default_factory=dict)
    """Of each other link, by name: the way of the pick, on each number of ranks."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, by the names above."""
        return asdict(self)


def way_of(its: CommunicationConfig | Setting) -> str:
    """How gradients, or weights, travel, in a word."""
    if its.reduce_every > 1:
        return f"every-{its.reduce_every}"
    if its.late_gradients:
        return "late" if its.compression == "none" else f"late-{its.compression}"
    return its.compression
