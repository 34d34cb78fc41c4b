"""Settings as plain values, ready for YAML and JSON, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from hvd_lm.conform import conform, kind, shown
from hvd_lm.errors import ConfigError, require

_Config = TypeVar("_Config")


def to_dict(config: Any) -> dict[str, Any]:
    """`config` as plain values (str, int, float, bool, None, list, dict), ready for YAML and JSON."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        return str(value) if isinstance(value, Path) else value

    return plain(asdict(config))  # type: ignore[no-any-return]


def from_dict(config_type: type[_Config], values: Mapping[str, Any]) -> _Config:
    """The inverse of `to_dict` for the flat dataclasses that checkpoints hold.

    Raises ConfigError for a name that `config_type` does not have, or a value of another type.
    """
    known = get_type_hints(config_type)
    require(isinstance(values, Mapping), f"{config_type.__name__} is no mapping")
    unknown = sorted(set(values) - set(known))
    require(not unknown, f"unknown setting {', '.join(unknown)} for {config_type.__name__}")
    settings = {}
    for name, value in values.items():
        try:
            settings[name] = conform(known[name], value)
        except (ValueError, OverflowError):
            raise ConfigError(f"{name} of {config_type.__name__} must be {kind(known[name])}, not {shown(value)}") from None
    return config_type(**settings)
