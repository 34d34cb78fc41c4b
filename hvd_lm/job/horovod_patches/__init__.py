"""What has to change in Horovod's source: a file for each change, which says why and goes on as a unified diff.

`git apply` and `patch -p1` take these files as they are. The recipe applies them by itself, since it has the standard library only.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent


class PatchError(Exception):
    """A patch that does not fit the source."""


@dataclass(frozen=True)
class Hunk:
    """Replace `old`, which must occur exactly once in `file`, by `new`; both are whole lines."""

    file: str
    old: str
    new: str


@dataclass(frozen=True)
class Patch:
    """One change, to one file or several."""

    name: str
    why: str
    hunks: tuple[Hunk, ...]


def files(gpu: bool = False) -> list[Path]:
    """The patches of this folder, by name; and after them those of gpu/, which a build for GPUs needs, too."""
    return [*sorted(FOLDER.glob("*.patch")), *(sorted(FOLDER.glob("gpu/*.patch")) if gpu else [])]


def patches(gpu: bool = False) -> tuple[Patch, ...]:
    """What `files` hold."""
    return tuple(parse(path.stem, _read(path)) for path in files(gpu))


def parse(name: str, text: str) -> Patch:
    """The patch that `text` holds: a reason, then a unified diff. Its line numbers are not used: the context tells the place."""
    why, *files = re.split(r"^--- a/.*\n\+\+\+ b/(.*)\n", text, flags=re.MULTILINE)
    hunks: list[Hunk] = []
    for file, body in zip(files[::2], files[1::2], strict=True):
        for hunk in re.split(r"^@@ .*\n", body, flags=re.MULTILINE)[1:]:
            lines = hunk.splitlines(keepends=True)
            old, new = ("".join(line[1:] for line in lines if line[0] in kept) for kept in (" -", " +"))
            hunks.append(Hunk(file, old, new))
    return Patch(name, " ".join(why.split()), tuple(hunks))


def apply(patch: Patch, source: Path) -> None:
    """Change the files of `source` in place; raises PatchError at the first hunk that does not fit."""
    for hunk in patch.hunks:
        path = source / hunk.file
        text = _read(path)
        if text.count(hunk.old) != 1:
            raise PatchError(f"patch {patch.name}: its text occurs {text.count(hunk.old)} times in {hunk.file}, not once")
        path.write_bytes(text.replace(hunk.old, hunk.new).encode())


def digest(recipe: Iterable[Path], gpu: bool = False) -> str:
    """SHA-256 of the files of a `recipe`, of the patches and of what applies them, in hex."""
    whole = hashlib.sha256()
    for path in [*recipe, Path(__file__), *files(gpu)]:
        whole.update(hashlib.sha256(path.read_bytes()).digest())
    return whole.hexdigest()


def _read(path: Path) -> str:
    return path.read_bytes().decode()  # as it is: text mode would change line ends
