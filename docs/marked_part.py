"""A part of a page that a script of this folder writes, between two marks. The standard library only."""

from __future__ import annotations


def page_with(text: str, name: str, part: str) -> str:
    """`text` with `part` between the marks of the script `name`."""
    begin, end = f"<!-- {name}: begin, by docs/{name}.py -->", f"<!-- {name}: end -->"
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n\n{part}\n{end}{after}"
