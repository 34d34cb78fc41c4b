"""What settings are refused with: one line each, which names the flag."""

from __future__ import annotations

import math
from typing import Any

from hvd_lm.errors import ConfigError


def require(condition: bool, message: str) -> None:
    """Raises ConfigError with `message` unless `condition` holds."""
    if not condition:
        raise ConfigError(message)


def require_positive(config: Any, *names: str) -> None:
    """Raises ConfigError for a field of `config` that is given, and is not above 0 and finite."""
    for name in names:
        value = getattr(config, name)
        require(value is None or 0 < value < math.inf, f"--{name.replace('_', '-')} must be above 0 and finite, not {value}")


def require_powersgd(rank: int, start_steps: int) -> None:
    """Raises ConfigError for a rank below 1, or less than no exact steps."""
    require(rank >= 1, f"--powersgd-rank must be at least 1, not {rank}")
    require(start_steps >= 0, f"--powersgd-start-steps must not be negative, not {start_steps}")
