"""What was measured, and what it says: medians, quartiles, ratios pair by pair, equality of losses. No files, no processes."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

TOLERANCE = {"exact": 1e-4, "keras": 1e-3, "fp16": 1e-2, "powersgd": 5e-2, "topk": 5e-2, "local": 5e-2, "late": 5e-2}
"""Largest relative difference of a window's loss, by the peer's maths."""


@dataclass(frozen=True)
class Outcome:
    """One run of one peer."""

    peer: str
    round: int
    size: int
    """Ranks that share one model."""
    maths: str
    is_ours: bool
    tokens_per_second: float
    """Of all ranks, over the timed windows."""
    seconds: list[float]
    """Of each timed window; of copies the slowest one's."""
    mean_seconds: list[float]
    """The same, but of copies the mean."""
    losses: list[float]
    """Of each window, those of the warm-up too; mean over the ranks."""
    peak_bytes: list[int]
    """Of each process."""
    sent_bytes: int
    """On the link by all hosts over the whole run, start included; not known (0) on loopback."""
    load: float
    """Load average of the machine before the run."""


@dataclass(frozen=True)
class Spread:
    """Median and quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)

    def __format__(self, spec: str) -> str:
        return f"{self.median:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"


def of_peer(outcomes: Iterable[Outcome], peer: str) -> list[Outcome]:
    return [outcome for outcome in outcomes if outcome.peer == peer]


def speed(outcomes: Sequence[Outcome], peer: str) -> Spread:
    """Tokens/s of `peer`, over the rounds."""
    return Spread.of([outcome.tokens_per_second for outcome in of_peer(outcomes, peer)])


def ratio(outcomes: Sequence[Outcome], ours: str, peer: str) -> Spread | None:
    """Tokens/s of `ours` / of `peer`, pair by pair of a round; None without a common round."""
    others = {outcome.round: outcome.tokens_per_second for outcome in of_peer(outcomes, peer)}
    pairs = [o.tokens_per_second / others[o.round] for o in of_peer(outcomes, ours) if o.round in others]
    return Spread.of(pairs) if pairs else None


def ratio_of_medians(outcomes: Sequence[Outcome], ours: str, peer: str) -> float:
    return speed(outcomes, ours).median / speed(outcomes, peer).median


def rotated(items: Sequence[str], by: int) -> list[str]:
    """The order of a round: each starts with another peer."""
    by %= max(1, len(items))
    return [*items[by:], *items[:by]]


def loss_difference(losses: Sequence[float], reference: Sequence[float]) -> float:
    """Largest relative difference, window by window."""
    return max(abs(a - b) / abs(b) for a, b in zip(losses, reference, strict=True))


@dataclass(frozen=True)
class LossCheck:
    """How far a peer's losses are from the reference's: the exact peer of the same number of ranks that ran first."""

    peer: str
    reference: str
    difference: float
    tolerance: float

    @property
    def agrees(self) -> bool:
        return self.difference <= self.tolerance


def check_losses(outcomes: Sequence[Outcome]) -> list[LossCheck]:
    """One check a peer, over all its rounds."""
    checks = []
    for peer in dict.fromkeys(outcome.peer for outcome in outcomes):
        runs = of_peer(outcomes, peer)
        exact = [o for o in outcomes if o.size == runs[0].size and o.maths == "exact"]
        if exact and (len(exact) > 1 or exact[0].peer != peer):
            reference = exact[0]
            worst = max(loss_difference(run.losses, reference.losses) for run in runs)
            checks.append(LossCheck(peer, reference.peer, worst, TOLERANCE[runs[0].maths]))
    return checks


def exposed_seconds(outcomes: Sequence[Outcome], ours: str, copies: str) -> tuple[Spread, Spread] | None:
    """Seconds of a window that `ours` spends beyond what the same ranks need without any reduction, round by round.

    Beyond the slowest of the ranks, for which a step would wait if nothing travelled at all; and beyond their mean.
    """
    alone = {outcome.round: outcome for outcome in of_peer(outcomes, copies)}
    pairs = [(statistics.median(o.seconds), alone[o.round]) for o in of_peer(outcomes, ours) if o.round in alone]
    if not pairs:
        return None
    slowest = Spread.of([seconds - statistics.median(copy.seconds) for seconds, copy in pairs])
    return slowest, Spread.of([seconds - statistics.median(copy.mean_seconds) for seconds, copy in pairs])


def ring_bound(values_bytes: float, hosts: int, bandwidth: float) -> float:
    """Seconds of a ring all-reduce of `values_bytes` that does nothing but send at `bandwidth` bytes/s."""
    return 2 * (hosts - 1) / hosts * values_bytes / bandwidth


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Aligned as Markdown wants it; the first column is text, the others are figures."""
    lines = [list(header), ["---", *["---:"] * (len(header) - 1)], *map(list, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
