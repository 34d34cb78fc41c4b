"""Settings of a YAML file, checked against the types of a config dataclass: the defaults of its flags."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from hvd_lm.conform import conform, kind, shown
from hvd_lm.errors import ConfigError
from hvd_lm.settings_file import read_yaml

_Config = TypeVar("_Config")


def read_defaults(config_type: type[_Config], path: Path) -> _Config:
    """A `config_type` with the settings that the file at `path` names, and its own defaults elsewhere.

    Types are checked, combinations are not: flags may yet mend what does not fit together.
    Raises ConfigError, which names the file and the setting.
    """
    known = setting_types(config_type)
    settings: dict[str, Any] = {}
    for name, value in read_yaml(path).items():
        if name not in known:
            raise ConfigError(f"--config {path}: unknown setting {shown(name)}{nearest(name, known)}")
        try:
            settings[name] = conform(known[name], value)
        except (ValueError, OverflowError):
            wanted = kind(known[name])
            problem = f"needs a value ({wanted})" if value is None else f"must be {wanted}, not {shown(value)}"
            raise ConfigError(f"--config {path}: {name} {problem}") from None
    return _unchecked(config_type, settings)


def setting_types(config_type: type) -> dict[str, Any]:
    """Name -> type of every setting, those of nested configs included."""
    found: dict[str, Any] = {}
    for name, hint in get_type_hints(config_type).items():
        found |= setting_types(hint) if _is_section(hint) else {name: hint}
    return found


def nearest(name: str, names: Iterable[str]) -> str:
    """A remark for a message about the unknown `name`: which of `names` may be meant."""
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.75)
    return f": did you mean {close[0]}?" if close else ""


def _is_section(hint: Any) -> bool:
    return isinstance(hint, type) and is_dataclass(hint)


def _unchecked(config_type: type[_Config], settings: dict[str, Any]) -> _Config:
    """A config past its own checks, as its fields are set one by one. The parser builds the one that counts, with them."""
    config = config_type()
    declared = {its.name: its.default for its in fields(config_type)}  # type: ignore[arg-type]
    for name, hint in get_type_hints(config_type).items():
        if _is_section(hint):
            object.__setattr__(config, name, _unchecked(hint, settings))
        elif name in settings or declared[name] is not MISSING:
            # Not what the checks have made of a default: they may make another thing of it beside these settings.
            object.__setattr__(config, name, settings.get(name, declared[name]))
    return config
