"""Values from YAML, JSON or Python, as the type that a setting's hint says; and how types and values read in a message."""

from __future__ import annotations

import contextlib
import os
import reprlib
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

_KINDS: dict[Any, Sequence[str]] = {
    bool: ("true or false", "true or false"),
    int: ("an integer", "integers"),
    float: ("a number", "numbers"),
    str: ("a text (in quotes, if need be)", "texts"),
    Path: ("a path (in quotes, if need be)", "paths"),
}
_LARGEST_BITS = 64
"""Of an integer. Larger ones count nothing, and may take minutes to print."""


def conform(hint: Any, value: Any) -> Any:
    """The plain `value` of a YAML or JSON file as the type `hint` says; what is no plain type must be of it already.

    Raises ValueError or OverflowError if it is no such thing.
    """
    arguments = get_args(hint)
    if get_origin(hint) in (Union, types.UnionType):
        if types.NoneType in arguments and (value is None or value == "None"):
            return None
        for argument in arguments if value is not None else ():
            with contextlib.suppress(ValueError):
                return conform(argument, value)
    elif get_origin(hint) is tuple:
        items = value if isinstance(value, list) else [] if value is None else [value]
        if arguments[-1] is ...:
            return tuple(conform(arguments[0], item) for item in items)
        return tuple(conform(argument, item) for argument, item in zip(arguments, items, strict=True))
    elif get_origin(hint) is Literal:
        if isinstance(value, str) and value in arguments:
            return value
    elif hint is float and type(value) in (int, str):  # a str for a float: YAML 1.1 takes 1e-4 for one
        return float(value)
    elif hint is Path and type(value) is str:
        return path_of(value)
    elif hint is int and type(value) is int:  # no isinstance: a bool is no integer here
        if value.bit_length() <= _LARGEST_BITS:
            return value
    elif type(value) is hint or (hint not in _KINDS and isinstance(value, get_origin(hint) or hint)):
        return value
    raise ValueError


def path_of(value: Any) -> Path:
    """`value` as a path. Raises ValueError if it can be none: an empty text, which Path takes for the working folder, is none."""
    text = value if isinstance(value, str) else os.fspath(value) if isinstance(value, os.PathLike) else ""
    if not isinstance(text, str) or not text or b"\0" in os.fsencode(text):
        raise ValueError(value)
    return Path(text)


def paths_of(hint: Any, value: Any) -> Any:
    """What a Python caller gives where `hint` says Path, maybe None, or several: one path counts as several too.

    Raises ValueError if it is no such thing.
    """
    if value is None and types.NoneType in get_args(hint):
        return None
    if get_origin(hint) is not tuple:
        return path_of(value)
    if isinstance(value, (str, os.PathLike)):
        return (path_of(value),)
    try:
        return tuple(map(path_of, value))
    except TypeError:
        raise ValueError(value) from None


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


def count(value: Any) -> int:
    """`value`, if it can be a number of steps, tokens or the like. Raises ValueError."""
    if type(value) is not int or not 0 <= value < 10**18:  # no isinstance: a bool is no integer here
        raise ValueError(f"{shown(value)} where a count should be")
    return value


def shown(value: Any) -> str:
    """`value` for a message: on one line, and not long."""
    try:
        return reprlib.repr(value)
    except ValueError:  # Python prints no integer of more than 4,300 digits
        return "a number of thousands of digits"
