"""What ``hvd-lm train`` makes of flags and of a YAML file, and the one line with which it refuses them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hvd_lm.command_line.flags import parse_with_yaml
from hvd_lm.config import RunConfig
from hvd_lm.errors import ConfigError

RULE = "─────"
"""A value that looks like what a terminal draws."""


def flags(*argv: str) -> RunConfig:
    """What ``hvd-lm train argv`` runs with."""
    return parse_with_yaml(RunConfig, "train", argv)


def yaml_and_flags(folder: Path, content: str, *argv: str) -> RunConfig:
    """What ``hvd-lm train --config FILE argv`` runs with, FILE holding `content`."""
    path = folder / "run.yaml"
    path.write_text(content, encoding="utf-8")
    return flags("--config", str(path), *argv)


def check_one_line(error: ConfigError) -> str:
    """The message, if it is one line without what a terminal draws."""
    message = str(error)
    assert message.strip()
    assert len(message.splitlines()) == 1
    assert not re.search(r"[\u2500-\u257f\x1b]", message.replace(repr(RULE), ""))
    return message


def refused_flags(*argv: str) -> str:
    with pytest.raises(ConfigError) as caught:
        flags(*argv)
    return check_one_line(caught.value)


def refused_yaml(folder: Path, content: str, *argv: str) -> str:
    with pytest.raises(ConfigError) as caught:
        yaml_and_flags(folder, content, *argv)
    return check_one_line(caught.value)
