"""What a compressor can be asked for."""

from __future__ import annotations

from hvd_lm.errors import require


def require_powersgd(rank: int, start_steps: int) -> None:
    """Raises ConfigError for a rank below 1, or less than no exact steps."""
    require(rank >= 1, f"--powersgd-rank must be at least 1, not {rank}")
    require(start_steps >= 0, f"--powersgd-start-steps must not be negative, not {start_steps}")


def require_topk(share: float, momentum: float, start_steps: int) -> None:
    """Raises ConfigError for a share outside (0, 1], a momentum outside [0, 1), or less than no steps."""
    require(0 < share <= 1, f"--topk-share must be in (0, 1], not {share}")
    require(0 <= momentum < 1, f"--topk-momentum must be in [0, 1), not {momentum}")
    require(start_steps >= 0, f"--topk-start-steps must not be negative, not {start_steps}")
