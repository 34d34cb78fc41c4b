#!/usr/bin/env python3
"""Writes the table of docs/faults.md from the table that the tests do, tests/faults/table.py.

    python docs/faults.py

Needs the standard library only. A test checks that the page says what the tests expect.
"""

from __future__ import annotations

import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS.parent / "tests" / "faults"))

from marked_part import page_with  # noqa: E402
from table import ROWS, THEN, Row  # noqa: E402

PAGE = DOCS / "faults.md"
_CONTROLLERS = {"gloo": "Gloo", "mpi": "MPI"}


def listing(rows: tuple[Row, ...] = ROWS) -> str:
    """The rows as Markdown."""
    head = ["| fault | when | over | who says what | exit code | within | then |", "|---|---|---|---|---|---|---|"]
    return "\n".join([*head, *map(_line, rows), ""])


def _line(row: Row) -> str:
    over = ", ".join(_CONTROLLERS[controller] for controller in row.over) or "one process"
    code = "not 0" if row.code is None else "137" if row.code == -9 else str(row.code)
    cells = (row.fault, row.moment, over, row.told or "nobody", code, f"{row.within} s", THEN[row.then])
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    PAGE.write_text(page_with(PAGE.read_text(encoding="utf-8"), "faults", listing()), encoding="utf-8")
