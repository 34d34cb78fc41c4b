"""A YAML file of settings: read as names and values, written so that it repeats a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from hvd_lm import plain_yaml
from hvd_lm.config import RunConfig
from hvd_lm.conform import shown
from hvd_lm.errors import require
from hvd_lm.plain_values import to_dict


def read_yaml(path: Path) -> dict[str, Any]:
    """Settings of a YAML file as ``{name: value}``, sections flattened, hyphens turned into underscores.

    Raises ConfigError if the file is missing, is no YAML mapping, or names a setting twice.
    """
    parsed = plain_yaml.load(path)
    require(parsed is None or isinstance(parsed, dict), f"--config {path} must hold `name: value` lines")
    settings: dict[str, Any] = {}

    def flatten(mapping: Mapping[Any, Any]) -> None:
        for key, value in mapping.items():
            if isinstance(value, Mapping):
                flatten(value)
            else:
                name = str(key).replace("-", "_")
                require(name not in settings, f"--config {path} names {shown(key)} twice")
                settings[name] = value

    flatten(parsed or {})
    return settings


def write_yaml(config: RunConfig, path: Path) -> None:
    """Write `config` so that ``--config path`` repeats it, and goes on with that very run from any folder."""
    config = replace(config, out=config.out.absolute())
    path.write_text(yaml.safe_dump(to_dict(config), sort_keys=False), encoding="utf-8")
