"""Flags made from config dataclasses, by tyro. What it refuses becomes a ConfigError of one line."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import tyro
from tyro import _errors as refusals
from tyro._arguments import ArgumentDefinition

from hvd_lm.command_line.yaml_defaults import kind, nearest, read_defaults, setting_types, shown
from hvd_lm.errors import ConfigError

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
    finder.add_argument("--config", type=Path, action="append", default=[])
    try:
        found, flags = finder.parse_known_args(argv)
    except argparse.ArgumentError:
        raise ConfigError("--config needs a file") from None
    if len(found.config) > 1:
        raise ConfigError(f"--config takes one file, not {len(found.config)}")
    description = f"{config_type.__doc__} Settings may come from YAML too: --config FILE.yaml; flags win."
    return _parse(config_type, command, flags, description=description, file=next(iter(found.config), None))


def _parse(config_type: type[_Config], command: str, argv: Sequence[str], *, description: str | None, file: Path | None) -> _Config:
    def refuse(event: refusals.ParseErrorEvent) -> NoReturn:
        is_combination = isinstance(event, refusals.InstantiationFailure) and event.argument is None
        where = f"with --config {file}; " if file and is_combination else ""
        raise ConfigError(f"{_message(event, setting_types(config_type), argv)} ({where}see {event.prog} --help)")

    with refusals.on_parse_error(refuse):
        return tyro.cli(
            config_type,
            prog=f"{PROGRAM} {command}",
            description=description,
            args=argv,
            default=tyro.MISSING_NONPROP if file is None else read_defaults(config_type, file),
            config=(tyro.conf.OmitArgPrefixes,),
        )


def _message(event: refusals.ParseErrorEvent, settings: dict[str, Any], argv: Sequence[str]) -> str:
    """What was wrong with `argv`, in words."""
    match event:
        case refusals.UnrecognizedArgs(tokens=[word, *_]) | refusals.MissingArgs(unrecognized_tokens=[word, *_]):
            flag = word.partition("=")[0]
            is_flag = flag.startswith("--")
            return f"unknown flag {flag!r}{nearest(flag, map(_flag, settings))}" if is_flag else f"unexpected word {shown(word)}"
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


def _flag(setting: str) -> str:
    return f"--{setting.replace('_', '-')}"


def _given(argument: ArgumentDefinition, argv: Sequence[str]) -> str:
    """The words of `argv` that the last flag for `argument` takes."""
    flag, takes = argument.display_name(), argument.lowered.nargs
    at = max(index for index, word in enumerate(argv) if word.partition("=")[0].replace("_", "-") == flag)
    _, equals, value = argv[at].partition("=")
    words = itertools.takewhile(lambda word: not word.startswith("--"), argv[at + 1 :])
    return value if equals else " ".join(itertools.islice(words, takes if isinstance(takes, int) else None))
