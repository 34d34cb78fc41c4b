"""What a compressor can be asked for."""

from __future__ import annotations

from typing import Any

from hvd_lm.errors import require

KEEPING = ("powersgd", "topk")
"""Kinds of --compression with which ranks keep a part of the gradients."""


def require_powersgd(rank: int, start_steps: int) -> None:
    """Raises ConfigError for a rank below 1, or less than no exact steps."""
    require(rank >= 1, f"--powersgd-rank must be at least 1, not {rank}")
    require(start_steps >= 0, f"--powersgd-start-steps must not be negative, not {start_steps}")


def require_topk(share: float, momentum: float, start_steps: int) -> None:
    """Raises ConfigError for a share outside (0, 1], a momentum outside [0, 1), or less than no steps."""
    require(0 < share <= 1, f"--topk-share must be in (0, 1], not {share}")
    require(0 <= momentum < 1, f"--topk-momentum must be in [0, 1), not {momentum}")
    require(start_steps >= 0, f"--topk-start-steps must not be negative, not {start_steps}")


def require_local(every: int, start_steps: int) -> None:
    """Raises ConfigError for less than every step, or less than no steps that are made together."""
    require(every >= 1, f"--reduce-every must be at least 1, not {every}")
    require(start_steps >= 0, f"--reduce-start-steps must not be negative, not {start_steps}")


def require_one_way(communication: Any) -> None:
    """Raises ConfigError for a CommunicationConfig that asks for two ways at once."""
    require(
        not (communication.reduction == "adasum" and communication.compression != "none"),
        "--reduction adasum works on full gradients: use it with --compression none",
    )
    require(
        communication.reduce_every == 1 or (communication.compression == "none" and communication.reduction == "sum"),
        "--reduce-every averages weights, as they are: use it with --compression none and --reduction sum",
    )
    require(
        not (communication.compression in KEEPING and communication.gradient_predivide_factor != 1),
        f"--gradient-predivide-factor makes room for sums of halves: use it without --compression {communication.compression}",
    )
    is_plain = communication.compression not in KEEPING and communication.reduction == "sum" and communication.reduce_every == 1
    require(
        not communication.late_gradients or is_plain,
        "--late-gradients delays sums of gradients: use it with --compression none or fp16, --reduction sum, and without "
        "--reduce-every",
    )


def require_any_ranks(communication: Any) -> None:
    """Raises ConfigError for a CommunicationConfig that needs a whole model on each rank, and the same ranks all the time."""
    alone = "use it without --split, --model-parallel and --elastic"
    require(
        communication.compression not in KEEPING,
        f"--compression {communication.compression} works on whole gradients, and every rank keeps a part of them: {alone}",
    )
    require(
        communication.reduce_every == 1, f"--reduce-every averages whole models, of which each rank has gone its own way: {alone}"
    )
    require(not communication.late_gradients, f"--late-gradients keeps whole gradients on their way: {alone}")
