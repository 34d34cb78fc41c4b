"""Commands of a task, ``hvd-lm TASK COMMAND``: which there are, and the one that is named."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from hvd_lm.command_line.flags import PROGRAM
from hvd_lm.errors import ConfigError


class TaskCommand(NamedTuple):
    """One of a task."""

    summary: str
    """For the help of the task."""
    run: Callable[[list[str]], None]
    """With the flags that follow it."""
    config: type
    """Whose settings are these flags."""


def run_task(task: str, commands: Mapping[str, TaskCommand], argv: list[str]) -> int:
    """Run the command of `task` that `argv` names, or tell which there are. Raises ConfigError for an unknown one."""
    if not argv or argv[0] in ("-h", "--help"):
        width = max(map(len, commands))
        lines = [f"  {name:<{width}}  {command.summary}" for name, command in commands.items()]
        use = f"{PROGRAM} {task} COMMAND"
        print("\n".join([f"usage: {use} [OPTIONS]", "", *lines, "", f"{use} --help tells the options."]))
        return 0
    name, *rest = argv
    if name not in commands:
        raise ConfigError(f"unknown command {task} {name!r}: choose one of {', '.join(commands)}")
    commands[name].run(rest)
    return 0
