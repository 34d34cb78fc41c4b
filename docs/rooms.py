#!/usr/bin/env python3
"""Writes the list of rooms in docs/tour.md from the code: every folder of hvd_lm, its files, and which rooms it imports.

    python docs/rooms.py

Needs the standard library only. A test checks that the page says what the code says.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import resolve_name
from pathlib import Path

from marked_part import page_with

DOCS = Path(__file__).parent
PACKAGE = DOCS.parent / "hvd_lm"
PAGE = DOCS / "tour.md"
HALL = "(beside the rooms)"
"""Stands for the modules that lie in the package itself."""


@dataclass(frozen=True)
class Room:
    """A folder of the package, or what lies beside the folders."""

    name: str
    summary: str
    """First line of the docstring of its ``__init__.py``."""
    files: tuple[tuple[str, str], ...]
    """Path below the package, and first line of the docstring; without ``__init__.py`` of folders, whose line is the summary."""
    imports: tuple[str, ...]
    """Rooms, and modules beside the rooms, that its files import, at any depth."""


def rooms(package: Path = PACKAGE) -> list[Room]:
    """Every room of `package`, in the order of their names; what lies beside them first."""
    folders = sorted(path.parent for path in package.glob("*/__init__.py"))
    beside = _room(package, HALL, package / "__init__.py", sorted(package.glob("*.py")))
    return [beside, *(_room(package, folder.name, folder / "__init__.py", sorted(folder.rglob("*.py"))) for folder in folders)]


def _room(package: Path, name: str, init: Path, files: list[Path]) -> Room:
    told = tuple((str(file.relative_to(package)), first_line(file)) for file in files if file.name != "__init__.py" or name == HALL)
    imports = {room for file in files for room in imported(file, package)} - {name}
    return Room(name, first_line(init), told, tuple(sorted(imports)))


def first_line(file: Path) -> str:
    """The first line of the docstring of a module; empty if it has none."""
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
    return docstring.splitlines()[0] if docstring else ""


def imported(file: Path, package: Path) -> Iterator[str]:
    """What `file` imports of `package`, by statement and at any depth: names of rooms, or of modules beside them."""
    parts = (package.name, *file.parent.relative_to(package).parts)
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        match node:
            case ast.Import(names=names):
                modules = [alias.name for alias in names]
            case ast.ImportFrom(module=module, names=names, level=level):
                origin = resolve_name("." * level + (module or ""), ".".join(parts)) if level else module or ""
                # `from package import x` may name a room: only what is one counts.
                modules = [f"{origin}.{alias.name}" for alias in names] if origin == package.name else [origin]
            case _:
                continue
        for module in modules:
            top, _, rest = module.partition(".")
            room = rest.partition(".")[0]
            if top == package.name and room and ((package / room).is_dir() or (package / f"{room}.py").is_file()):
                yield room


# --- the page --------------------------------------------------------------------------------------------


def listing(found: list[Room]) -> str:
    """The rooms as Markdown: a picture of who imports whom, and a table of files for each."""
    return "\n".join([*_picture(found), *(line for room in found for line in _section(room))])


def _picture(found: list[Room]) -> list[str]:
    names = {room.name for room in found}
    arrows = [f"    {room.name} --> {other}" for room in found if room.name != HALL for other in room.imports if other in names]
    return ["```mermaid", "graph LR", *arrows, "```", ""]


def _section(room: Room) -> list[str]:
    title = f"### {room.name}/" if room.name != HALL else "### Beside the rooms"
    imports = ", ".join(room.imports) or "nothing of hvd_lm"
    rows = [f"| [{_short(room, path)}](../hvd_lm/{path}) | {_cell(line)} |" for path, line in room.files]
    summary = [] if room.name == HALL else [_cell(room.summary), ""]
    return [title, "", *summary, f"Imports {imports}.", "", "| file | what |", "|---|---|", *rows, ""]


def _short(room: Room, path: str) -> str:
    return f"`{path.removeprefix(f'{room.name}/')}`"


def _cell(text: str) -> str:
    """A line of a docstring as Markdown in a table."""
    return text.replace("``", "`").replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    PAGE.write_text(page_with(PAGE.read_text(encoding="utf-8"), "rooms", listing(rooms())), encoding="utf-8")
