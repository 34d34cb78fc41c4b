"""Settings of a YAML file, checked against the types of a config dataclass: the defaults of its flags."""

from __future__ import annotations

import contextlib
import difflib
import reprlib
import types
from collections.abc import Iterable, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from hvd_lm.config import read_yaml
from hvd_lm.errors import ConfigError

_Config = TypeVar("_Config")

_KINDS: dict[Any, Sequence[str]] = {
    bool: ("true or false", "true or false"),
    int: ("an integer", "integers"),
    float: ("a number", "numbers"),
    str: ("a text (in quotes, if need be)", "texts"),
    Path: ("a path (in quotes, if need be)", "paths"),
}


def read_defaults(config_type: type[_Config], path: Path) -> _Config:
    """A `config_type` with the settings that the file at `path` names, and its own defaults elsewhere.

    Types are checked, combinations are not: flags may yet mend what does not fit together.
    Raises ConfigError, which names the file and the setting.
    """
    known = setting_types(config_type)
    settings: dict[str, Any] = {}
    for name, value in read_yaml(path).items():
        if name not in known:
            raise ConfigError(f"--config {path}: unknown setting {name!r}{nearest(name, known)}")
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


def conform(hint: Any, value: Any) -> Any:
    """What YAML gave, as the type `hint` says; raises ValueError or OverflowError if it is no such thing."""
    arguments = get_args(hint)
    if get_origin(hint) in (Union, types.UnionType):
        if types.NoneType in arguments and (value is None or value == "None"):
            return None
        for argument in arguments if value is not None else ():
            with contextlib.suppress(ValueError):
                return conform(argument, value)
    elif get_origin(hint) is tuple:
        items = value if isinstance(value, list) else [] if value is None else [value]
        return tuple(conform(arguments[0], item) for item in items)
    elif get_origin(hint) is Literal:
        if isinstance(value, str) and value in arguments:
            return value
    elif (hint is float and type(value) in (int, str)) or (hint is Path and type(value) is str):
        return hint(value)  # a str for a float: YAML 1.1 takes 1e-4 for one
    elif type(value) is hint:  # no isinstance: a bool is no integer here
        return value
    raise ValueError


def kind(hint: Any) -> str:
    """What a setting of type `hint` must be, in words; None, where it may be that, is left out."""
    arguments = [argument for argument in get_args(hint) if argument not in (types.NoneType, ...)]
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(map(kind, arguments))
    if get_origin(hint) is tuple:
        return f"a list of {_KINDS.get(arguments[0], [str(arguments[0])])[-1]}"
    if get_origin(hint) is Literal:
        return f"one of {', '.join(arguments)}"
    return _KINDS.get(hint, [str(hint)])[0]


def shown(value: Any) -> str:
    """`value` for a message: on one line, and not long."""
    return reprlib.repr(value)


def nearest(name: str, names: Iterable[str]) -> str:
    """A remark for a message about the unknown `name`: which of `names` may be meant."""
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.75)
    return f": did you mean {close[0]}?" if close else ""


def _is_section(hint: Any) -> bool:
    return isinstance(hint, type) and is_dataclass(hint)


def _unchecked(config_type: type[_Config], settings: dict[str, Any]) -> _Config:
    """A config past its own checks, as its fields are set one by one. The parser builds the one that counts, with them."""
    config = config_type()
    for name, hint in get_type_hints(config_type).items():
        if _is_section(hint):
            object.__setattr__(config, name, _unchecked(hint, settings))
        elif name in settings:
            object.__setattr__(config, name, settings[name])
    return config
