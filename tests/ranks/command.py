"""A command of hvd-lm within a started rank; errors are raised.

horovodrun -np 2 python command.py train --steps 2
"""

from __future__ import annotations

import sys

from common import report

from hvd_lm.command_line import commands


def main(*arguments: str) -> int:
    return commands.run(list(arguments))


if __name__ == "__main__":
    report(main(*sys.argv[1:]))
