"""``hvd-lm completion SHELL``: what makes a shell complete commands and flags. Values, such as files, are completed as ever."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

from hvd_lm.command_line.flags import PROGRAM, flag_of
from hvd_lm.command_line.yaml_defaults import setting_types
from hvd_lm.errors import ConfigError

Shell = Literal["bash", "zsh"]

_SCRIPT = """\
{preface}_hvd_lm() {{
  local words="" command="${{COMP_WORDS[1]}}"
  case "$command" in
    {tasks}) if [ "$COMP_CWORD" -gt 2 ]; then command="$command ${{COMP_WORDS[2]}}"; fi ;;
  esac
  if [ "$COMP_CWORD" -eq 1 ]; then command=""; fi
  case "$command" in
{cases}
  esac
  COMPREPLY=($(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
complete -o default -F _hvd_lm {program}
"""
_PREFACE = {"bash": "", "zsh": "autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n"}


def flags_of(config_type: type) -> list[str]:
    """All flags that the settings of a command have."""
    return sorted([*map(flag_of, setting_types(config_type)), "--help"])


def script(shell: str, words: Mapping[str, Sequence[str]]) -> str:
    """What the `shell` is to read. `words`: what may follow a command ("train", "sentiment train"), and what may begin ("").

    Raises ConfigError for another shell.
    """
    if shell not in get_args(Shell):
        raise ConfigError(f"no completion for {shell!r}: choose one of {', '.join(get_args(Shell))}")
    tasks = dict.fromkeys(command.split()[0] for command in words if " " in command)
    cases = "\n".join(f"    {shlex.quote(command)}) words={shlex.quote(' '.join(may))} ;;" for command, may in words.items())
    return _SCRIPT.format(preface=_PREFACE[shell], tasks="|".join(tasks), cases=cases, program=PROGRAM)
