"""What ranks must have in common, and the trouble of one of them: all ranks learn of it, and raise the same error.

A rank that raised alone would leave the others waiting for it in their next collective call. So it keeps its error until the ranks
agree (`Job.agree`), or beside the loss of a step, which tells how many ranks are in trouble.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hvd_lm import errors
from hvd_lm.errors import ConfigError, HvdLmError
from hvd_lm.plain_values import to_dict

_NAMED = 4
"""Ranks, and differences, that a message names; of more it gives the number."""
_SHOWN = 40
"""Characters of a value that a message shows; longer ones are digests."""

Word = Mapping[str, Any]
"""What a rank tells the others, in plain values: what it has in common with them, and its trouble."""


class Trouble:
    """The first error of this rank that the other ranks do not know of yet."""

    def __init__(self, at_once: tuple[type[BaseException], ...] = ()) -> None:
        """Errors of the types `at_once` are not kept: they mean that nobody is there any more to be told."""
        self._at_once = at_once
        self.error: Exception | None = None

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        """Keep an error that is raised within until the ranks agree."""
        try:
            yield
        except Exception as error:
            self.note(error)

    def note(self, error: Exception) -> None:
        """Keep `error`, unless there is an earlier one."""
        if isinstance(error, self._at_once):
            raise error
        self.error = self.error or error

    def word(self, values: Mapping[str, Any]) -> Word:
        """What this rank tells."""
        return {"values": dict(values), "trouble": told(self.error) if self.error else None}

    def verdict(self, words: Sequence[Word], places: Sequence[str]) -> Exception | None:
        """What this rank has to raise after `words` of all ranks, which are at `places`: its own error, that of the first rank in
        trouble, or a ConfigError that names the values which differ."""
        if self.error:
            return self.error
        for word, place in zip(words, places, strict=True):
            if word["trouble"]:
                return retold(**word["trouble"], place=place)
        return difference([word["values"] for word in words], places)


def told(error: Exception) -> dict[str, str]:
    """`error` in plain values, as it travels to other ranks."""
    if ours := errors.in_family(error):
        return {"kind": type(ours).__name__, "message": str(ours)}
    return {"kind": "", "message": "".join(traceback.format_exception(error)).rstrip()}


def retold(kind: str, message: str, place: str) -> HvdLmError:
    """The error of another rank, from what it `told`, with its exit code."""
    family = getattr(errors, kind, None)
    if family:
        error: HvdLmError = family(f"{message} ({place})")
        return error
    return errors.BugError(f"{place} failed; the lines below tell where\n{message}")


def of_one_rank(error: Exception, rank: int, place: str) -> HvdLmError:
    """What a rank raises that leaves the job because of an `error` of its own."""
    of_all = retold(**told(error), place=place)
    of_all.speaker = rank
    return of_all


def difference(values: Sequence[Mapping[str, Any]], places: Sequence[str]) -> ConfigError | None:
    """Says which ranks, at `places`, differ from the first, and in what; None if none does."""
    first, found = values[0], []
    for name in dict.fromkeys(name for its in values for name in its):
        odd = [rank for rank, its in enumerate(values) if its.get(name) != first.get(name)]
        if odd:
            whose = ", ".join(places[rank] for rank in odd[:_NAMED]) + (", ..." if len(odd) > _NAMED else "")
            theirs, ours = (str(its.get(name)) for its in (values[odd[0]], first))
            figures = f"{theirs} instead of {ours}: " if max(len(theirs), len(ours)) <= _SHOWN else ""
            found.append(f"{len(odd)} of {len(values)} ranks {name} than rank 0 ({figures}{whose})")
    if not found:
        return None
    rest = f"; {len(found) - _NAMED} more differences" if len(found) > _NAMED else ""
    return ConfigError(f"{'; '.join(found[:_NAMED])}{rest}: give every host the same files, settings and versions")


def settings(config: Any, without: Sequence[str]) -> dict[str, Any]:
    """Every setting of a config and of its sections but those in `without`, as `Job.agree` compares them."""

    def flat(section: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        for name, value in section.items():
            if isinstance(value, Mapping):
                yield from flat(value)
            elif name not in without:
                yield f"have another --{name.replace('_', '-')}", value

    return dict(flat(to_dict(config)))


@functools.cache
def source_digest() -> str:
    """Of hvd_lm itself: two hosts may have the same version in two states."""
    package = Path(__file__).parent.parent
    hashed = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        hashed.update(str(path.relative_to(package)).encode() + path.read_bytes())
    return hashed.hexdigest()[:12]
