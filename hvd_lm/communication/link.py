"""A link as it was measured: what each collective takes a step and a byte there, what Horovod adds, and what a model takes.

link.json    {"format": 1, "ranks": 2, "hosts": 1, "framework": "torch", ..., "collectives": [...], "compute": {...} or null}
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import numpy as np

from hvd_lm.checkpoint.files import replace_file
from hvd_lm.communication.contention import Contention, Rates
from hvd_lm.communication.fit import fit
from hvd_lm.communication.pairs import Pairs
from hvd_lm.communication.ring import COLLECTIVES, CollectiveName, course
from hvd_lm.errors import DataError, why

FORMAT = 1
SMALL, LARGE = 2**12, 2**20
"""Bytes: up to which an operation tells the latency, and from which on it tells the bandwidth."""
_AGAIN = "write one with horovodrun -np N hvd-lm measure --out FILE"
_Record = TypeVar("_Record")


@dataclass(frozen=True)
class Point:
    """Some operations, timed alike."""

    size: int
    """Bytes of each."""
    count: int
    """Operations that were submitted at once."""
    seconds: float
    """Until the slowest rank had all of them: lower quartile of the repeats, as what else a machine does only ever adds to it."""
    fastest: float
    slowest: float
    repeats: int


@dataclass(frozen=True)
class Collective:
    """An operation in one number format, by ``negotiation + count (steps alpha + volume size beta)`` (see `ring.course`)."""

    name: str
    number_format: str
    """float32 or float16."""
    alpha: float
    """Seconds a step."""
    beta: float
    """Seconds a byte."""
    error: float
    """Of the fit: median relative difference."""
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Compute:
    """What one rank takes for a model beside the others, in seconds; the slowest rank's."""

    model: dict[str, Any]
    """Its settings, as plain values."""
    optimizer: str
    batch_size: int
    sequence_length: int
    together: int
    """Micro-batches that shared a backward while it was timed."""
    forward: float
    """Of a micro-batch, without the output layer, whose forward is a part of the backward."""
    backward: float
    """Of a micro-batch that shares a backward with others."""
    backward_base: float
    """Of each backward besides, however many share it."""
    update: float
    """Of a step, norm and clipping too."""


@dataclass(frozen=True)
class Link:
    """What was measured, where, and with what."""

    ranks: int
    hosts: int
    controller: str
    """Gloo or MPI."""
    framework: str
    device: str
    """Framework, version and device, as in a run's headline."""
    horovod: str
    """Version."""
    processor: str
    threads: int
    """Compute threads of a rank."""
    made: str
    """When, ISO 8601."""
    negotiation_seconds: float
    """From the submission of a tensor until its operation begins, on an idle link; of as many ranks (see `negotiation`)."""
    collectives: tuple[Collective, ...]
    compute: Compute | None = None
    pairs: Pairs | None = None
    """Messages between every two ranks, where MPI launches."""
    contention: tuple[Contention, ...] = ()
    """Of the model's compute and all its gradients, in each number format."""

    def rates(self, number_format: str = "float32") -> Rates:
        """Of compute and of gradients in that number format, alone and beside each other."""
        found = {its.number_format: its.rates() for its in self.contention}
        return found.get(number_format, Rates())

    def negotiation(self, ranks: int) -> float:
        """Of so many ranks: their words go round a ring over Gloo, and through a tree over MPI, as small all-reduces do there."""
        if self.controller == "MPI":
            return self.negotiation_seconds * math.log2(ranks) / math.log2(self.ranks)
        return self.negotiation_seconds * (ranks - 1) / (self.ranks - 1)

    def of(self, name: CollectiveName, number_format: str = "float32") -> Collective:
        """The operation in that number format, or in float32 where that was not measured. Raises DataError if neither was."""
        for wanted in (number_format, "float32"):
            for found in self.collectives:
                if (found.name, found.number_format) == (name, wanted):
                    return found
        raise DataError(f"the link's {name} was not measured: measure it again, with more --seconds")

    def seconds(self, name: CollectiveName, size: float, ranks: int, number_format: str = "float32") -> float:
        """Of an operation of `size` bytes among `ranks`, once it has begun."""
        its = self.of(name, number_format)
        return course(name, ranks).seconds(size, its.alpha, its.beta)


def fitted(points: dict[tuple[CollectiveName, str], list[Point]], ranks: int) -> tuple[float, tuple[Collective, ...]]:
    """Negotiation, in seconds, and the collectives of `points` by name and number format.

    beta is that of large operations: a link may let small ones pass faster than it can go on. alpha is that of small ones.
    Negotiation is told from it by all-reduces that are submitted at once and negotiated together; other collectives take it as
    it is.
    """
    together = points["allreduce", "float32"]
    steps, _ = course("allreduce", ranks)
    left, few = _latencies(together, "allreduce", ranks, 0.0)
    negotiation = float(fit(np.array([[1, p.count * steps] for p in few]), left).coefficients[0])
    found = []
    for (name, number_format), of_one in points.items():
        steps, volume = course(name, ranks)
        left, few = _latencies(of_one, name, ranks, negotiation)
        alpha = float(fit(np.array([[p.count * steps] for p in few]), left).coefficients[0])
        beta = _beta(of_one, volume)
        differences = [(negotiation + p.count * (steps * alpha + volume * p.size * beta)) / p.seconds - 1 for p in of_one]
        found.append(Collective(name, number_format, alpha, beta, float(np.median(np.abs(differences))), tuple(of_one)))
    return negotiation, tuple(found)


def _beta(points: Sequence[Point], volume: float) -> float:
    """Of the large ones, as far as there are two."""
    alone = [point for point in points if point.count == 1]
    large = [point for point in alone if point.size >= LARGE]
    chosen = large if len(large) > 1 else alone
    return float(fit(np.array([[1, volume * p.size] for p in chosen]), _seconds(chosen)).coefficients[1])


def _latencies(
    points: Sequence[Point], name: CollectiveName, ranks: int, negotiation: float
) -> tuple[np.ndarray[Any, np.dtype[np.float64]], list[Point]]:
    """Seconds of the small ones without negotiation and bytes; a small part at least, so that relative errors mean something."""
    few = [point for point in points if point.size <= SMALL]
    _, volume = course(name, ranks)
    beta = _beta(points, volume)
    known = np.array([negotiation + p.count * volume * p.size * beta for p in few])
    return np.maximum(_seconds(few) - known, 0.05 * _seconds(few)), few


def _seconds(points: Iterable[Point]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array([point.seconds for point in points])


# --- files -----------------------------------------------------------------------------------------------


def write_link(link: Link, path: Path) -> None:
    """Into a file that is the old one or the new one, never a part. Raises OSError."""
    replace_file(path, json.dumps({"format": FORMAT, **asdict(link)}, indent=1) + "\n")


def read_link(path: Path) -> Link:
    """Raises DataError, in one line, if it is missing, cut, or no file of ``hvd-lm measure``."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot read --link {path}: {why(error, path)}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"--link {path} is cut off or no JSON: {_AGAIN}") from error
    if not isinstance(values, dict) or "format" not in values:
        raise DataError(f"--link {path} is no file of hvd-lm measure: {_AGAIN}")
    if values.pop("format") != FORMAT:
        raise DataError(f"--link {path} is of another format than {FORMAT}, by another version of hvd-lm: measure again")
    try:
        link: Link = _record(Link, values)
        _check(link)
    except (TypeError, ValueError, KeyError) as error:
        said = " ".join(str(error).split())
        raise DataError(f"--link {path} is damaged ({said}): {_AGAIN}") from error
    return link


def _record(kind: type[_Record], values: Any) -> _Record:
    """A record, and those within it. Raises TypeError or ValueError where a value is of another kind, or a name missing."""
    if not isinstance(values, dict):
        raise TypeError(f"{kind.__name__} is no object")
    hints, made = get_type_hints(kind), {}
    for field in fields(kind):  # type: ignore[arg-type]
        hint = hints[field.name]
        if field.name not in values and field.default is not MISSING:
            continue  # of an older version
        if field.name not in values:
            raise ValueError(f"{field.name} is missing")
        made[field.name] = _value(hint, values[field.name], field.name)
    return kind(**made)


def _value(hint: Any, value: Any, name: str) -> Any:
    if hint in (Point, Collective, Compute, Contention):
        return _record(hint, value)
    if hint in (Compute | None, Pairs | None):
        return None if value is None else _record(get_args(hint)[0], value)
    if get_origin(hint) is tuple:
        if not isinstance(value, list):
            raise TypeError(f"{name} is no list")
        return tuple(_value(get_args(hint)[0], item, name) for item in value)
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        if not 0 <= value < float("inf"):
            raise ValueError(f"{name} is {value}")
        return float(value)
    wanted = dict if hint == dict[str, Any] else hint
    if type(value) is not wanted:
        raise TypeError(f"{name} is {value!r:.40}")
    return value


def _check(link: Link) -> None:
    if link.ranks < 2:
        raise ValueError(f"ranks is {link.ranks}")
    if link.pairs:
        of_ranks = [link.pairs.hosts, link.pairs.alphas, link.pairs.betas, *link.pairs.alphas, *link.pairs.betas]
        if any(len(rows) != link.ranks for rows in of_ranks):
            raise ValueError(f"pairs are not of {link.ranks} ranks")
    if strange := [found.name for found in link.collectives if found.name not in COLLECTIVES]:
        raise ValueError(f"no collective is called {strange[0]!r:.40}")
