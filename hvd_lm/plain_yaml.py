"""YAML files of settings, without what makes YAML dangerous: no objects, no aliases, no names given twice, no endless file."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from hvd_lm.conform import shown
from hvd_lm.errors import ConfigError, why

_LARGEST = 1 << 20
"""Bytes."""


def load(path: Path) -> Any:
    """What the file holds: mappings, lists, texts, numbers, dates, None. Raises ConfigError if it is no such file."""
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST + 1)
        if len(content) > _LARGEST:
            raise ConfigError(f"--config {path} is larger than 1 MiB: give a file of settings")
        return yaml.load(content.decode("utf-8"), _PlainLoader)
    except OSError as error:
        raise ConfigError(f"cannot read --config {path}: {why(error, path)}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"cannot read --config {path}: {error}; save it as UTF-8") from error
    except ConfigError:
        raise
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:  # such as a date that there is not
        raise ConfigError(f"--config {path} is not valid YAML: {' '.join(str(error).split())}") from error


class _PlainLoader(yaml.SafeLoader):
    """Refuses a name that is given twice, where YAML would let the last one win, and aliases, a few of which fill a memory."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "it refers to another place (*name): write the value out", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: set[Hashable] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in keys:
                raise yaml.constructor.ConstructorError(None, None, f"{shown(key)} is named twice", node.start_mark)
            if isinstance(key, Hashable):  # the others are refused below
                keys.add(key)
        return super().construct_mapping(node, deep)
