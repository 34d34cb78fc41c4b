"""Flags made from config dataclasses, by tyro. What it refuses becomes a ConfigError of one line."""

from __future__ import annotations

import argparse
import itertools
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_args

import tyro
from tyro import _errors as refusals
from tyro._arguments import ArgumentDefinition
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from hvd_lm.command_line.yaml_defaults import nearest, read_defaults, setting_types
from hvd_lm.conform import kind, path_of, shown
from hvd_lm.errors import ConfigError
from hvd_lm.paths import at_home

PROGRAM = "hvd-lm"

_Config = TypeVar("_Config")


def parse(config_type: type[_Config], command: str, argv: Sequence[str]) -> _Config:
    """The config that the flags `argv` of ``hvd-lm command`` describe.

    Raises ConfigError for anything that does not parse, SystemExit(0) after the help that --help asks for.
    """
    return _parse(config_type, command, argv, description=None, file=None)


def parse_with_yaml(config_type: type[_Config], command: str, argv: Sequence[str]) -> _Config:
    """Like `parse`, where the YAML file of ``--config FILE``, anywhere among the flags, gives their defaults."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    finder.add_argument("--config", type=path_of, action="append", default=[])
    try:
        found, flags = finder.parse_known_args(argv)
    except argparse.ArgumentError:
        raise ConfigError("--config needs a file") from None
    if len(found.config) > 1:
        raise ConfigError(f"--config takes one file, not {len(found.config)}")
    description = f"{config_type.__doc__} Settings may come from YAML too: --config FILE.yaml; flags win."
    file = at_home(found.config[0], "--config") if found.config else None
    return _parse(config_type, command, flags, description=description, file=file)


def _parse(config_type: type[_Config], command: str, argv: Sequence[str], *, description: str | None, file: Path | None) -> _Config:
    settings = setting_types(config_type)
    argv = _joined(argv, settings)

    def refuse(event: refusals.ParseErrorEvent) -> NoReturn:
        is_combination = isinstance(event, refusals.InstantiationFailure) and event.argument is None
        where = f"with --config {file}; " if file and is_combination else ""
        raise ConfigError(f"{_message(event, settings, argv)} ({where}see {event.prog} --help)")

    with refusals.on_parse_error(refuse):
        return tyro.cli(
            config_type,
            prog=f"{PROGRAM} {command}",
            description=description,
            args=argv,
            default=tyro.MISSING_NONPROP if file is None else read_defaults(config_type, file),
            config=(tyro.conf.OmitArgPrefixes,),
            registry=_PATHS,
        )


_PATHS = ConstructorRegistry()
"""How a path is made: as everywhere, so that the empty word, left by a variable that is not set, is none."""


@_PATHS.primitive_rule
def _path(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Path] | None:
    if info.type is not Path:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="PATH",
        instance_from_str=lambda words: path_of(words[0]),
        is_instance=lambda value: isinstance(value, Path),
        str_from_instance=lambda value: [str(value)],
    )


def _joined(argv: Sequence[str], settings: Mapping[str, Any]) -> list[str]:
    """`argv` with ``--prompt=--he`` for ``--prompt --he``: behind a flag for one text or path, dashes begin its value.

    Unless they begin a flag that there is: then a value is missing.
    """
    flags = {flag for name in settings for flag in (flag_of(name), flag_of(f"no_{name}"))}
    single = {flag_of(name) for name, hint in settings.items() if {hint, *_members(hint)} & {str, Path}}
    joined: list[str] = []
    for word in argv:
        is_flag = word in ("-h", "--help") or _normal(word.partition("=")[0]) in flags
        if joined and word.startswith("-") and not is_flag and _normal(joined[-1]) in single:
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def _members(hint: Any) -> tuple[Any, ...]:
    """Of a union."""
    return get_args(hint) if isinstance(hint, types.UnionType) else ()


def _normal(flag: str) -> str:
    return flag.replace("_", "-")


def _message(event: refusals.ParseErrorEvent, settings: dict[str, Any], argv: Sequence[str]) -> str:
    """What was wrong with `argv`, in words."""
    match event:
        case refusals.UnrecognizedArgs(tokens=[word, *_]) | refusals.MissingArgs(unrecognized_tokens=[word, *_]):
            flag = word.partition("=")[0]
            is_flag = flag.startswith("--")
            if _normal(flag) in map(flag_of, settings):
                return f"give what {flag} would name without it, as words after the command"
            return f"unknown flag {flag!r}{nearest(flag, map(flag_of, settings))}" if is_flag else f"unexpected word {shown(word)}"
        case refusals.MissingArgs(missing_arguments=missing):
            return f"{', '.join(found.arg.display_name() for found in missing)} must be given"
        case refusals.BadValue(argument=argument):
            return f"{argument.display_name()} needs a value"
        case refusals.InvalidChoice(argument=argument, value=value, choices=choices):
            return f"{argument.display_name()} must be one of {', '.join(choices)}, not {shown(value)}"
        case refusals.InstantiationFailure(argument=argument, message=message):
            if argument is None:  # a config that refuses its own settings, in its own words
                return message
            wanted = kind(argument.field.type_stripped)
            return f"{argument.display_name()} must be {wanted}, not {shown(_given(argument, argv))}"
    return f"the flags do not parse ({type(event).__name__})"


def flag_of(setting: str) -> str:
    """Of a setting."""
    return f"--{_normal(setting)}"


def _given(argument: ArgumentDefinition, argv: Sequence[str]) -> str:
    """The words of `argv` that the last flag for `argument` takes."""
    flag, takes = argument.display_name(), argument.lowered.nargs
    at = max((index for index, word in enumerate(argv) if _normal(word.partition("=")[0]) == flag), default=None)
    if at is None:
        return ""  # a word without a flag, of which only the empty one is refused
    _, equals, value = argv[at].partition("=")
    words = itertools.takewhile(lambda word: not word.startswith("--"), argv[at + 1 :])
    return value if equals else " ".join(itertools.islice(words, takes if isinstance(takes, int) else None))
