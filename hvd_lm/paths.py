"""Paths as people give them: as strings, one where several may be, with a ``~`` for the home folder."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, get_type_hints

from hvd_lm.conform import kind, paths_of, shown
from hvd_lm.errors import ConfigError


def make_paths(config: Any, *names: str) -> None:
    """Let Python callers give strings where a Path is meant, and one where several are; ``~`` is the home folder.

    Raises ConfigError for what is no path, the empty string among it.
    """
    hints = get_type_hints(type(config))
    for name in names:
        object.__setattr__(config, name, _paths(hints[name], getattr(config, name), f"--{name.replace('_', '-')}"))


def one_path(value: Path | str, flag: str) -> Path:
    """As `make_paths`, of what is no field of a config."""
    path: Path = _paths(Path, value, flag)
    return path


def _paths(hint: Any, value: Any, flag: str) -> Any:
    try:
        paths = paths_of(hint, value)
    except ValueError:
        raise ConfigError(f"{flag} must be {kind(hint)}, not {shown(value)}") from None
    expand = partial(at_home, flag=flag)
    return tuple(map(expand, paths)) if isinstance(paths, tuple) else paths and expand(paths)


def at_home(path: Path, flag: str) -> Path:
    """`path` with the home folder for a leading ``~``, which no shell replaces in YAML and behind ``=``."""
    if path.parts[:1] != ("~",):
        return path
    try:
        return path.expanduser()
    except RuntimeError:
        raise ConfigError(f"{flag} {path}: nothing says where the home folder is: set HOME, or give the whole path") from None
