"""``hvd-lm queueing``: a run's Horovod timeline as a queue: gradients are customers, the link is the server.

Little's law (Little 1961, "A Proof for the Queuing Formula L = lambda W") binds three figures, each taken by itself here. What
a queue would do to customers who come at random, or in bursts, stands beside what they waited.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hvd_lm.communication.timeline import Passage, Timeline, read_timeline
from hvd_lm.errors import DataError
from hvd_lm.paths import make_paths

GRADIENT = "gradient"
"""What hvd-lm's own runs name the tensors of gradients with."""


@dataclass(frozen=True)
class QueueingConfig:
    """Read Horovod's timeline of a run as a queue: Little's law, utilisation, and waits beside those that theory predicts."""

    timeline: Path
    """What rank 0 of a run wrote with --timeline-filename; one that is cut off will do."""
    tensors: str | None = None
    """The customers: tensors with this in their name; the empty word for all. Unless given: gradient, or all if none has it."""
    json: bool = False
    """Print one JSON object in place of words."""

    def __post_init__(self) -> None:
        make_paths(self, "timeline")


@dataclass(frozen=True)
class Predictions:
    """Of waits, in seconds, from the arrival rate and the services alone."""

    number_in_system: float
    """Little's law: arrival rate x time in system."""
    mg1_wait: float
    """Pollaczek-Khinchine: services come at random, one by one."""
    mg1_time_in_system: float
    """The same with negotiation and service."""
    burst_wait: float
    """Bursts come at random; those of a burst are served one after the other."""


@dataclass(frozen=True)
class Queueing:
    """A timeline as a queue. Times in seconds, rates per second."""

    number_in_system: float
    """L: time average of the count of customers between arrival and end, integrated over the observation."""
    arrival_rate: float
    """lambda: arrivals / observation."""
    time_in_system: float
    """W: mean over the customers who were done."""
    little_difference: float
    """abs(L - lambda W) / L"""
    utilisation: float
    """rho: share of the observation in which the link served a customer."""
    negotiation_seconds: float
    """Mean part of W: until every rank had the tensor."""
    wait_seconds: float
    """Mean part of W: from then until Horovod took it up. What the predictions are of."""
    service_seconds: float
    """Mean part of W."""
    arrivals: int
    unfinished: int
    """Arrivals that the timeline does not see done."""
    services: int
    """Operations of the link; fused tensors share one."""
    bursts: int
    """Runs of arrivals in which no tensor comes twice: one a window."""
    arrival_variation: float
    """Squared coefficient of variation of the times between arrivals; 1 if they come at random (Poisson), more in bursts."""
    service_variation: float
    """Squared coefficient of variation of the services."""
    observed_seconds: float
    is_cut: bool
    unreadable: int
    predictions: Predictions

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, by the names above; None where a prediction is infinite."""
        plain = asdict(self)
        plain["predictions"] = {name: value if math.isfinite(value) else None for name, value in plain["predictions"].items()}
        return plain


def queueing(config: QueueingConfig) -> Queueing:
    """The queue in a timeline. Raises DataError if the file has none, or no customer of that name."""
    return analyse(read_timeline(config.timeline), config.tensors, str(config.timeline))


def analyse(timeline: Timeline, tensors: str | None = None, source: str = "the timeline") -> Queueing:
    """`timeline` as a queue whose customers have `tensors` in their names; `source` is what errors call it."""
    wanted = _chooser(timeline, tensors)
    served = [passage for passage in timeline.passages if wanted(passage.tensor)]
    if not served:
        names = ", ".join(dict.fromkeys(passage.tensor for passage in timeline.passages[:3]))
        raise DataError(f"{source} has served no tensor with {tensors!r} in its name, but such as {names}: choose --tensors")
    came = np.array([change.at for change in timeline.changes if wanted(change.tensor) and change.by > 0])
    went = np.array([change.at for change in timeline.changes if wanted(change.tensor) and change.by < 0])
    unfinished = len(came) - len(went)
    begins = float(came[0])
    ends = timeline.ended if unfinished else float(went.max())
    observed = ends - begins
    number = number_in_system(came, went, begins, ends) if observed > 0 else 0.0
    if not number:
        raise DataError(f"{source} is over in no time: give one of more steps")
    rate, time_in_system = len(came) / observed, _mean(served, lambda passage: passage.seconds)
    services = service_times(served)
    bursts = burst_sizes(served)
    wait, negotiation = _mean(served, lambda p: p.waited), _mean(served, lambda p: p.negotiated)
    service = _mean(served, lambda p: p.served)
    random = mg1_wait(len(services) / observed, services)
    per_burst = np.array([size * len(services) / len(served) for size in bursts])
    return Queueing(
        number_in_system=number,
        arrival_rate=rate,
        time_in_system=time_in_system,
        little_difference=abs(number - rate * time_in_system) / number,
        utilisation=float(services.sum()) / observed,
        negotiation_seconds=negotiation,
        wait_seconds=wait,
        service_seconds=service,
        arrivals=len(came),
        unfinished=unfinished,
        services=len(services),
        bursts=len(bursts),
        arrival_variation=variation(np.diff(np.sort(came))),
        service_variation=variation(services),
        observed_seconds=observed,
        is_cut=timeline.is_cut,
        unreadable=timeline.unreadable,
        predictions=Predictions(
            rate * time_in_system, random, negotiation + random + service, burst_wait(len(bursts) / observed, per_burst, services)
        ),
    )


def _chooser(timeline: Timeline, tensors: str | None) -> Callable[[str], bool]:
    if tensors is None:
        tensors = GRADIENT if any(GRADIENT in passage.tensor for passage in timeline.passages) else ""
    part = tensors
    return lambda name: part in name


def _mean(passages: Sequence[Passage], of: Callable[[Passage], float]) -> float:
    return float(np.mean([of(passage) for passage in passages]))


# --- the three figures, and the server -------------------------------------------------------------------


def number_in_system(came: NDArray[np.float64], went: NDArray[np.float64], begins: float, ends: float) -> float:
    """L: the integral of the count over time, divided by the time. Knows no customer, only that one came or went."""
    at = np.concatenate((came, went, [ends]))
    by = np.concatenate((np.ones(len(came)), -np.ones(len(went)), [0.0]))
    order = np.argsort(at, kind="stable")
    at, by = at[order], by[order]
    count = np.cumsum(by)[:-1]
    return float((count * np.diff(at)).sum()) / (ends - begins)


def service_times(served: Sequence[Passage]) -> NDArray[np.float64]:
    """Seconds of each service of the link, in order: tensors that are served at the same time were fused, or overlap on it."""
    found: list[list[float]] = []
    for passage in sorted(served, key=lambda passage: passage.begun):
        if found and passage.begun < found[-1][1]:
            found[-1][1] = max(found[-1][1], passage.done)
        else:
            found.append([passage.begun, passage.done])
    return np.array([done - begun for begun, done in found])


def burst_sizes(served: Sequence[Passage]) -> list[int]:
    """Customers of each burst, in order of arrival: a tensor that comes again begins the next one."""
    sizes: list[int] = []
    seen: set[str] = set()
    for passage in sorted(served, key=lambda passage: passage.arrived):
        if not sizes or passage.tensor in seen:
            sizes.append(0)
            seen = set()
        seen.add(passage.tensor)
        sizes[-1] += 1
    return sizes


def variation(values: NDArray[np.float64]) -> float:
    """Squared coefficient of variation; 0 of fewer than two values, or of zeros."""
    mean = values.mean() if len(values) > 1 else 0.0
    return float(values.var() / mean**2) if mean else 0.0


# --- predictions -----------------------------------------------------------------------------------------


def mg1_wait(rate: float, services: NDArray[np.float64]) -> float:
    """Mean wait in M/G/1 with `rate` Poisson arrivals a second, by Pollaczek-Khinchine: lambda E[S^2] / (2 (1 - rho)).

    Infinite from rho = 1 on.
    """
    load = rate * float(services.mean())
    return rate * float((services**2).mean()) / (2 * (1 - load)) if load < 1 else math.inf


def burst_wait(rate: float, sizes: NDArray[np.float64], services: NDArray[np.float64]) -> float:
    """Mean wait in M[X]/G/1, where `rate` bursts a second come at random, of X = `sizes` services each.

    That of a burst as one customer, and that behind the others of the same burst, (E[X^2] / E[X] - 1) E[S] / 2 (Burke 1975, "Delays
    in single-server queues with batch input"). Infinite from rho = 1 on.
    """
    mean, squared = float(services.mean()), float((services**2).mean())
    size, size_squared = float(sizes.mean()), float((sizes**2).mean())
    load = rate * size * mean
    if load >= 1:
        return math.inf
    # The work that a burst brings: mean X S, second moment E[X] Var[S] + E[X^2] E[S]^2.
    work_squared = size * (squared - mean**2) + size_squared * mean**2
    return rate * work_squared / (2 * (1 - load)) + (size_squared / size - 1) * mean / 2


# --- words -----------------------------------------------------------------------------------------------


def words(found: Queueing) -> str:
    """What a person reads."""
    p = found.predictions
    lines = [
        f"number in system    L = {found.number_in_system:.4g} tensors, time average of the count",
        f"arrival rate   lambda = {found.arrival_rate:.4g} a second: {found.arrivals} in {found.observed_seconds:.3f} s",
        f"time in system      W = {_ms(found.time_in_system)}: {_ms(found.negotiation_seconds)} until all ranks had the tensor, "
        f"{_ms(found.wait_seconds)} of waiting, {_ms(found.service_seconds)} of service",
        f"Little's law   lambda W = {p.number_in_system:.4g}, which is {found.little_difference:.2%} from L",
        f"utilisation       rho = {found.utilisation:.1%}, in {found.services} services",
        f"waits: {_ms(found.wait_seconds)} measured; {_ms(p.mg1_wait)} if services came at random (M/G/1), "
        f"{_ms(p.burst_wait)} if {found.bursts} bursts did",
        _of_assumptions(found),
    ]
    if found.is_cut or found.unfinished or found.unreadable:
        cut = "the timeline is cut off" if found.is_cut else "the timeline has its end"
        lines.append(f"{cut}: {found.unfinished} arrivals are not seen done, {found.unreadable} places cannot be read")
    return "\n".join(lines)


def _of_assumptions(found: Queueing) -> str:
    said = f"times between arrivals vary {found.arrival_variation:.3g} (1 if they came at random)"
    if found.arrival_variation > 2:
        return f"{said}: arrivals come in bursts, so that M/G/1, which knows none, says too little"
    return f"{said}: M/G/1 may hold"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if math.isfinite(seconds) else "without end"
