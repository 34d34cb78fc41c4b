"""Horovod's timeline, read: when each tensor came, when all ranks had it, when it was served, and when it was done.

The file is a list of events as Chrome's tracing has them. Horovod writes it as it goes, so that one of a run that was ended has no
end: what can be read is read, and what cannot is counted.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hvd_lm.errors import DataError, why

_MICROSECOND = 1e-6
_NEGOTIATION = "NEGOTIATE_"
_EVENT = re.compile(r"\{")
_NEXT_EVENT = re.compile(r"\}\s*,\s*\{")


@dataclass(frozen=True)
class Passage:
    """One tensor's way through Horovod, in seconds since the timeline began."""

    tensor: str
    operation: str
    """allreduce, allgather, broadcast, alltoall or reducescatter."""
    arrived: float
    """Rank 0 heard of it first."""
    ready: float
    """Every rank had it."""
    begun: float
    """Horovod's thread took it up; from here on it does nothing else."""
    done: float

    @property
    def seconds(self) -> float:
        return self.done - self.arrived

    @property
    def negotiated(self) -> float:
        return self.ready - self.arrived

    @property
    def waited(self) -> float:
        return self.begun - self.ready

    @property
    def served(self) -> float:
        return self.done - self.begun


@dataclass(frozen=True)
class Change:
    """Of the number of tensors in the system: one came (+1) or went (-1)."""

    at: float
    tensor: str
    by: int


@dataclass(frozen=True)
class Timeline:
    """What a file tells."""

    passages: tuple[Passage, ...]
    """In the order in which they were done."""
    changes: tuple[Change, ...]
    """In the order of time, those of tensors that were never done too."""
    ended: float
    """When the last event was."""
    is_cut: bool
    """Whether the end of the list is missing."""
    unreadable: int
    """Places at which something is no event."""


def read_timeline(path: Path) -> Timeline:
    """The timeline at `path`. Raises DataError if it cannot be read, or holds no tensor that Horovod has served."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise DataError(f"cannot read the timeline {path}: {why(error, path)}") from error
    reader = _Reader()
    events = list(_events(text))
    for event in events:
        if event is not None:
            reader.read(event)
    if not reader.passages:
        advice = "give one that hvd-lm train --timeline-filename FILE wrote on 2 ranks or more, on rank 0"
        raise DataError(f"{path} holds no tensor that Horovod has served: {advice}")
    is_cut = not text.rstrip().endswith("]")
    # What a cut leaves of the last event is no trouble of its own.
    unreadable = (events[:-1] if is_cut else events).count(None)
    changes = sorted((change for change in reader.changes if change), key=lambda change: change.at)
    return Timeline(tuple(reader.passages), tuple(changes), reader.now, is_cut, unreadable)


def _events(text: str) -> Iterator[dict[str, Any] | None]:
    """The events of `text`; None in place of one that cannot be read."""
    decoder, at = json.JSONDecoder(), 0
    while found := _EVENT.search(text, at):
        try:
            event, at = decoder.raw_decode(text, found.start())
        except (ValueError, RecursionError):
            following = _NEXT_EVENT.search(text, found.end())
            at = following.end() - 1 if following else len(text)
            yield None
        else:
            yield event


@dataclass
class _Open:
    """A tensor that is on its way."""

    change: int
    """Its arrival, among the changes."""
    arrived: float
    ready: float | None = None
    begun: float | None = None
    operation: str = ""
    depth: int = 0
    """Activities within the operation that have begun and not ended; the operation is the first."""


class _Reader:
    """Takes one event after the other. Horovod's tensors are what the format calls processes."""

    def __init__(self) -> None:
        self.passages: list[Passage] = []
        self.changes: list[Change | None] = []
        """None in place of an arrival whose end was lost, which would otherwise count for ever."""
        self.now = 0.0
        self._names: dict[str, str] = {}
        self._open: dict[str, _Open] = {}

    def read(self, event: dict[str, Any]) -> None:
        who, kind, name = str(event.get("pid")), event.get("ph"), event.get("name", "")
        if kind == "M":
            if name == "process_name" and isinstance(named := event.get("args"), dict) and "name" in named:
                self._names[who] = str(named["name"])
            return
        at = event.get("ts")
        if not isinstance(at, (int, float)) or not math.isfinite(at) or who not in self._names or not isinstance(name, str):
            return
        at *= _MICROSECOND
        self.now = max(self.now, at)
        if kind == "B":
            self._begin(who, name, at)
        elif kind == "E":
            self._end(who, at)

    def _begin(self, who: str, name: str, at: float) -> None:
        found = self._open.get(who)
        negotiates = name.startswith(_NEGOTIATION)
        if found and negotiates:
            self.changes[found.change] = None
            found = None
        if found is None:
            # What is known already to all ranks may be served without a word.
            found = self._open[who] = _Open(len(self.changes), at)
            self.changes.append(Change(at, self._names[who], 1))
        if negotiates:
            return
        if found.begun is None:
            found.begun, found.operation = at, name.lower().replace("_", "")
            found.ready = at if found.ready is None else found.ready
        found.depth += 1

    def _end(self, who: str, at: float) -> None:
        found = self._open.get(who)
        if found is None:
            return
        if found.begun is None:
            found.ready = at
            return
        found.depth -= 1
        if found.depth == 0:
            del self._open[who]
            assert found.ready is not None
            self.changes.append(Change(at, self._names[who], -1))
            self.passages.append(Passage(self._names[who], found.operation, found.arrived, found.ready, found.begun, at))
