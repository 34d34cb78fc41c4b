"""``hvd-lm measure``: Horovod's collectives on the link, controller and framework that are there, timed and fitted."""

from __future__ import annotations

import importlib.metadata
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np

from hvd_lm import adapters
from hvd_lm.adapters.base import Adapter
from hvd_lm.adapters.ending import ending_together
from hvd_lm.adapters.job import Job
from hvd_lm.adapters.probe import Action, Probe
from hvd_lm.communication.clock import of_slowest
from hvd_lm.communication.compute import time_compute
from hvd_lm.communication.contention import Contention, time_contention
from hvd_lm.communication.gradients import Sent, gradients
from hvd_lm.communication.link import LARGE, SMALL, Link, Point, fitted, write_link
from hvd_lm.communication.pairs import time_pairs
from hvd_lm.communication.picture import png
from hvd_lm.communication.ring import COLLECTIVES, CollectiveName
from hvd_lm.communication.simulation import service_of, simulate
from hvd_lm.config import (
    REFERENCE_VOCABULARY_SIZE,
    CommunicationConfig,
    DataConfig,
    Framework,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
)
from hvd_lm.errors import ConfigError, require, why
from hvd_lm.job import launcher
from hvd_lm.job.agreement import settings
from hvd_lm.paths import make_paths

SMALLEST = 1024
"""Bytes."""
TIMES = 4
"""Each size is so many times the one before."""
NUMBER_FORMATS = ("float32", "float16")
SEVERAL = (2, 4, 8, 16, 32)
"""All-reduces that are submitted at once, to tell what each takes from what all take together."""
_FEWEST, _MOST = 3, 25
_UNTIMED = 2
"""The first are negotiated in another way, and take new memory."""
_TO_WARM_UP = 2**21
"""Bytes."""
_CYCLE_MS = 0.01
_MOST_OF_LEFT = 0.4
"""Of the budget that is left, which an operation may take for its fewest repeats."""
_MOST_OF_SEVERAL = 0.05
"""Of the budget, which so many all-reduces at once may take."""
_LONG = 0.01
"""Seconds of a small all-reduce, from which on a link is long."""
_SHARE_OF_COMPUTE = 0.4
_SHARE_OF_CONTENTION = 0.3
"""Of that."""
OF_A_RANK = ("out", "config", "threads")


@dataclass(frozen=True)
class MeasureConfig:
    """Time Horovod's collective operations on every rank of a horovodrun job, and fit latency and bandwidth to them."""

    out: Path = Path("link.json")
    """File for what was measured; beside it, as .png, a picture of points and fits."""
    config: Path | None = None
    """YAML file of a run (as hvd-lm train --config takes it): its model is timed too, and its framework and threads are taken."""
    framework: Framework | None = None
    """Which framework sends. Unless given: that of --config, or torch."""
    seconds: float = 60.0
    """About how long to measure; what does not fit in is left out, the largest sizes first."""
    largest_mb: int = 256
    """Largest operation, in MiB; a rank takes about three times the memory."""
    threads: int | None = None
    """Compute threads of a rank. Unless given: that of --config, or the cores of the machine shared by its ranks."""

    def __post_init__(self) -> None:
        make_paths(self, "out", "config")
        require(0 < self.seconds < float("inf"), f"--seconds must be above 0 and finite, not {self.seconds}")
        require(1 <= self.largest_mb <= 4096, f"--largest-mb must be in [1, 4096], not {self.largest_mb}")
        require(self.threads is None or self.threads >= 1, f"--threads must be at least 1, not {self.threads}")


@dataclass(frozen=True)
class Work:
    """The parts of a run's settings that its compute depends on."""

    model: ModelConfig
    data: DataConfig
    optimizer: OptimizerConfig
    communication: CommunicationConfig

    @classmethod
    def of(cls, run: RunConfig) -> Work:
        """That of a run."""
        return cls(run.model, run.data, run.optimizer, run.communication)

    def with_vocabulary(self) -> Work:
        """The reference's, where the text is to decide."""
        if self.model.vocabulary_size is not None:
            return self
        return replace(self, model=replace(self.model, vocabulary_size=REFERENCE_VOCABULARY_SIZE))


def measure(config: MeasureConfig, framework: Framework = "torch", work: Work | None = None) -> Link:
    """Measure, and on rank 0 write `config.out` and its picture. Collective.

    Raises ConfigError on one rank, or where the file cannot be written; FrameworkError; LostWorkerError.
    """
    if launcher.launched_size() < 2:
        raise ConfigError("one rank has no link to measure: start 2 or more, with horovodrun -np 2 hvd-lm measure")
    # Fused tensors could not be told from one, and all small ones would take a cycle. Both are predicted.
    communication = replace(
        work.communication if work else CommunicationConfig(),
        fusion_threshold_mb=0,
        cycle_time_ms=_CYCLE_MS,
        autotune=False,
        timeline_filename=None,
    )
    adapter = adapters.adapter(framework, communication, threads=config.threads)
    job = adapter.job
    with ending_together(job):
        job.agree(settings(config, without=OF_A_RANK))
        link = measure_link(adapter, framework, config.seconds, config.largest_mb * 2**20, work)
        link = replace(link, pairs=time_pairs(job))
        if job.topology.is_writer:
            with job.trouble.noted():
                _write(link, config.out)
        job.agree()
    return link


def measure_link(
    adapter: Adapter,
    framework: str,
    seconds: float,
    largest: int,
    work: Work | None,
    names: tuple[CollectiveName, ...] = COLLECTIVES,
) -> Link:
    """The link of the job of `adapter`, in about so many `seconds`: collectives by `names`, the all-reduce among them, of up to
    `largest` bytes, and the compute of `work`, for which the adapter is built. Collective."""
    job = adapter.job
    for_compute = seconds * _SHARE_OF_COMPUTE if work else 0.0
    points = _Timing(job, seconds - for_compute, names).points(largest)
    negotiation, collectives = fitted(points, job.topology.size)
    link = Link(
        ranks=job.topology.size,
        hosts=len(set(job.hosts)),
        controller=job.controller,
        framework=framework,
        device=job.summary().partition(", ")[0],
        horovod=importlib.metadata.version("horovod"),
        processor=processor(),
        threads=job.threads,
        made=datetime.now(UTC).isoformat(timespec="seconds"),
        negotiation_seconds=negotiation,
        collectives=collectives,
    )
    if not work:
        return link
    work = work.with_vocabulary()
    model, share = work.model, 1 - _SHARE_OF_CONTENTION
    compute, once = time_compute(adapter, model, work.data, work.optimizer, work.communication, share * for_compute)
    sent = gradients(model, work.data, replace(work.communication, compression="none", reduce_every=1), job.topology.size, 0.0)
    values = [tensor.size / 4 for tensor in sent if tensor.name.startswith("gradient.")]
    for_each = _SHARE_OF_CONTENTION * for_compute / len(NUMBER_FORMATS)
    found = [time_contention(job, once, values, its, partial(_fitted_seconds, link, its), for_each) for its in NUMBER_FORMATS]
    return replace(link, compute=compute, contention=tuple(filter(None, found)))


def _fitted_seconds(link: Link, number_format: str, values: Sequence[float]) -> float:
    """Of all-reduces of so many values each, submitted at once, that are neither fused nor wait for a cycle."""
    item = np.dtype(number_format).itemsize
    sent = [Sent(str(place), 0.0, item * count, number_format) for place, count in enumerate(values)]
    return simulate(sent, service_of(link, link.ranks), negotiation=link.negotiation_seconds)[-1].done


def processor() -> str:
    """Name of this machine's, as far as it is told."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _write(link: Link, out: Path) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_link(link, out)
        picture = out.with_suffix(".png")
        picture.write_bytes(png(link))
    except OSError as error:
        raise ConfigError(f"cannot write --out {out}: {why(error, out)}") from error


# --- the clock -------------------------------------------------------------------------------------------


@dataclass
class _Timing:
    """Times operations until a budget is spent; what all ranks decide by are figures that all of them have."""

    job: Job
    budget: float
    """Seconds."""
    names: tuple[CollectiveName, ...]
    _spent: float = 0.0
    _found: dict[tuple[CollectiveName, str], list[Point]] = field(default_factory=dict)

    def points(self, largest: int) -> dict[tuple[CollectiveName, str], list[Point]]:
        """Of all sizes up to `largest` bytes, of every collective and number format, as far as the budget goes. Collective."""
        probe = self.job.probe_class(self.job)
        began = time.perf_counter()
        # TCP's windows grow with what passes; until they do, an operation may wait 40 ms for an acknowledgement.
        values = np.zeros(_values(_TO_WARM_UP, "float32", self.job.topology.size), np.float32)
        for name in self.names:
            if act := probe.operation(name, values):
                for _ in range(_UNTIMED):
                    act()
        self._spent += of_slowest(self.job, time.perf_counter() - began)[0]
        for count in SEVERAL:
            of_one = self._found.get(("allreduce", "float32"), [])
            if len(of_one) > 1 and self._takes(of_one[-1].fastest * count / of_one[-1].count) > _MOST_OF_SEVERAL * self.budget:
                break  # two tell what each takes from what all take
            self._time("allreduce", "float32", SMALLEST, count, probe.several(count, SMALLEST // 4), share=0.01)
        # Gradients are summed: what that takes comes first, and has half of the budget.
        budget, self.budget = self.budget, self.budget / 2
        self._all_sizes(probe, ("allreduce",), largest)
        self.budget = budget
        self._all_sizes(probe, tuple(name for name in self.names if name != "allreduce"), largest)
        return self._found

    def _all_sizes(self, probe: Probe, names: Sequence[CollectiveName], largest: int) -> None:
        sizes = list(_sizes(largest))
        for index, size in enumerate(sizes):
            if SMALL < size < LARGE and self._is_long:
                continue  # what is in between only shows how good the fit is, and takes its time here
            # Each size takes up to so many times as long as the one before: this is what all of them may take alike.
            share = (TIMES - 1) / (TIMES ** (len(sizes) - index) - 1) / (len(names) * len(NUMBER_FORMATS))
            for number_format in NUMBER_FORMATS:
                values = np.zeros(_values(size, number_format, self.job.topology.size), number_format)
                for name in names:
                    # Before it has tensors, which are as large.
                    if self._is_wanted(name, number_format, size) and (act := probe.operation(name, values)):
                        self._time(name, number_format, values.nbytes, 1, act, share=share)

    def _is_wanted(self, name: CollectiveName, number_format: str, size: int) -> bool:
        """Whether an operation of about so many bytes is timed."""
        before = [point for point in self._found.get((name, number_format), []) if point.count == 1]
        # Two sizes make a line; but small ones are all latency, and some large sum must tell the bandwidth.
        if len(before) < 2 or (name, size) == ("allreduce", LARGE):
            return True
        return self._takes(expected_seconds(before, size)) <= (self.budget - self._spent) * _MOST_OF_LEFT

    def _time(self, name: CollectiveName, number_format: str, size: int, count: int, act: Action, *, share: float) -> None:
        of_one = self._found.setdefault((name, number_format), [])
        left = self.budget - self._spent
        began = time.perf_counter()
        quickest = of_slowest(self.job, min(self._run(act) for _ in range(_UNTIMED)))[0]
        repeats = int(np.clip(left * share / max(quickest, 1e-6), _FEWEST, _MOST))
        # No operation begins before all ranks have asked for it: they stay together by themselves.
        seconds = of_slowest(self.job, *(self._run(act) for _ in range(repeats)))
        of_one.append(Point(size, count, float(np.quantile(seconds, 0.25)), float(seconds.min()), float(seconds.max()), repeats))
        self._spent += of_slowest(self.job, time.perf_counter() - began)[0]

    @property
    def _is_long(self) -> bool:
        """As far as is known by now, by small sums."""
        small = [point for point in self._found.get(("allreduce", "float32"), []) if point.size <= SMALL]
        return bool(small) and small[-1].fastest / small[-1].count > _LONG

    def _takes(self, seconds: float) -> float:
        """Of the budget, at least, an operation of so many seconds."""
        return (_UNTIMED + _FEWEST) * seconds

    def _run(self, act: Action) -> float:
        self.job.watch.sign()
        began = time.perf_counter()
        act()
        return time.perf_counter() - began


def expected_seconds(before: Sequence[Point], size: int) -> float:
    """Seconds of an operation of `size` bytes by the line through the last two that were timed: small ones are all latency."""
    last, earlier = before[-1], before[-2]
    rate = max(0.0, last.fastest - earlier.fastest) / (last.size - earlier.size)
    return last.fastest + rate * (size - last.size)


def _sizes(largest: int) -> Iterator[int]:
    size = SMALLEST
    while size <= largest:
        yield size
        size *= TIMES


def _values(size: int, number_format: str, ranks: int) -> int:
    """Of about `size` bytes, so many that each rank has the same part."""
    values = size // np.dtype(number_format).itemsize
    return max(1, values // ranks) * ranks


def words(link: Link, out: Path) -> str:
    """What a person reads."""
    lines = [
        f"{link.ranks} ranks on {link.hosts} host(s), {link.device}, Horovod {link.horovod} over {link.controller}",
        f"negotiation {link.negotiation_seconds * 1e3:.3f} ms",
        f"{'':<14}{'format':<9}{'alpha, us a step':>17}{'1/beta, MB/s':>14}{'off by':>8}{'up to':>12}",
    ]
    for its in link.collectives:
        rate = f"{1e-6 / its.beta:,.0f}" if its.beta else "-"
        largest = f"{max(point.size for point in its.points) / 2**20:.3g} MiB"
        lines.append(f"{its.name:<14}{its.number_format:<9}{its.alpha * 1e6:>17.1f}{rate:>14}{its.error:>8.0%}{largest:>12}")
    if unseen := [f"{its.name} in {its.number_format}" for its in link.collectives if not its.beta]:
        lines.append(f"no limit of the bandwidth shows in {', '.join(unseen)}: take more --seconds, or a quieter machine")
    lines += map(_of_window, link.contention)
    if link.compute:
        c = link.compute
        of_batch = f"forward {c.forward * 1e3:.2f} ms, backward {c.backward_base * 1e3:.2f} + {c.backward * 1e3:.2f} ms"
        lines.append(f"a micro-batch of {c.batch_size} x {c.sequence_length} tokens: {of_batch}; update {c.update * 1e3:.2f} ms")
    lines += link.pairs.lines() if link.pairs else []
    lines.append(f"in {out}; picture in {out.with_suffix('.png')}")
    return "\n".join(lines)


def _of_window(its: Contention) -> str:
    alone, beside, compute = (f"{1 / rate:.2f} times" for rate in (its.rates().alone, its.rates().beside, its.rates().compute))
    return (
        f"all gradients of a window at once, in {its.number_format}, take {alone} as long as their sizes say, "
        f"beside compute {beside}; compute takes {compute} as long beside them"
    )
