"""What the steps of a run should take on the link that was measured (``--link``), and why they take longer if they do.

Rank 0 alone knows: it has the file, and writes the rows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
from typing import NamedTuple

from hvd_lm.adapters.job import Job
from hvd_lm.communication.link import Link
from hvd_lm.communication.measure import Work, processor
from hvd_lm.communication.phases import phases
from hvd_lm.communication.predict import Prediction, predict
from hvd_lm.config import Framework, TopologyConfig
from hvd_lm.errors import ConfigError, HvdLmError
from hvd_lm.job.messages import warn
from hvd_lm.training.metrics import Metrics, Row

SLOWER = 1.25
"""So many times what was predicted is worth a word."""
IN_A_ROW = 20
"""Steps that must all have been as slow."""


class Phase(NamedTuple):
    """Steps of one kind."""

    first: int
    """Steps that were applied before the first of them."""
    predicted: Prediction
    every: int = 1
    """After so many of them weights are averaged, which is a part of the last one's time."""

    def seconds(self, step: int) -> float:
        """Of optimizer step `step`."""
        its = self.predicted
        own = its.step_seconds - its.averaging_seconds
        return own if (step - self.first) % self.every else own + self.every * its.averaging_seconds


class _Seen(NamedTuple):
    """A step that has been made."""

    row: Row
    seconds: float
    predicted: float
    expected_wait: float
    """Of that, the wait for gradients, which are made of sums while they are waited for."""


class Expectation:
    """Of the steps of one leg."""

    def __init__(self, expected: Sequence[Phase], tokens: int) -> None:
        """`tokens`: targets of a whole window on all ranks. A shorter window, at the end of an epoch, is not judged."""
        self._expected, self._tokens = expected, tokens
        self._before: Row | None = None
        self._slow: deque[_Seen] = deque(maxlen=IN_A_ROW)
        self._is_said = False

    def _of(self, step: int) -> Phase:
        """That of optimizer step `step`, counted from 1."""
        return next(phase for phase in reversed(self._expected) if phase.first < step)

    def figures(self, step: int) -> Row:
        """For the metrics: seconds of the step, and of them those of communication that nothing hides."""
        phase = self._of(step)
        its = phase.predicted
        waited = {"predicted_communication_seconds": its.exposed_seconds} if its.ranks > 1 else {}
        return {"predicted_seconds": phase.seconds(step), **waited}

    def judge(self, row: Row) -> str | None:
        """Once: what to say when as many steps in a row as it takes were slow, `row` being the last of them."""
        before, self._before = self._before, row
        if self._is_said or before is None or row["tokens"] - before["tokens"] < self._tokens:
            return None
        phase = self._of(row["step"])
        expected_wait = phase.predicted.exposed_seconds + phase.predicted.compression_seconds
        seen = _Seen(row, row["seconds"] - before["seconds"], phase.seconds(row["step"]), expected_wait)
        if seen.seconds <= SLOWER * seen.predicted:
            self._slow.clear()
            return None
        self._slow.append(seen)
        if len(self._slow) < IN_A_ROW:
            return None
        self._is_said = True
        return _why(self._slow)


def _why(slow: Sequence[_Seen]) -> str:
    """What the steps took and should have taken, and where most of the difference went.

    A rank waits at least as long as the one that waits least: that is the link's. What it waits beyond that is for a slower rank;
    what is neither a wait, nor for text or checkpoints, it has computed.
    """

    def mean(name: str) -> float:
        return fmean(its.row.get(name, 0.0) for its in slow)

    took, predicted, expected = (fmean(seconds) for seconds in zip(*(its[1:] for its in slow), strict=True))
    own, least = mean("communication_seconds"), mean("communication_seconds_least")
    beside = {
        "waits for text: prepare it (hvd-lm prepare), or read it from a nearer disk": mean("data_seconds"),
        "waits for checkpoints: write fewer (--checkpoint-every), or to a faster disk": mean("checkpoint_seconds"),
        "waits for the link, of all ranks alike: it is slower than when it was measured": least - expected,
        "waits for a slower rank: look after the machines of the others": own - least,
    }
    computed = "computing on rank 0, slower than when it was timed: a busy machine, or other cores"
    parts = {**beside, computed: took - predicted - sum(beside.values())}
    most = max(parts, key=lambda what: parts[what])
    return (
        f"the last {len(slow)} steps took {_time(took)} each where {_time(predicted)} were predicted; most of the difference, "
        f"{_time(min(parts[most], took - predicted))}, went into {most}"
    )


def _time(seconds: float) -> str:
    return f"{seconds:,.2f} s" if seconds >= 1 else f"{seconds * 1e3:,.1f} ms"


class ExpectingMetrics:
    """Metrics whose rows have what was predicted of their step, too."""

    def __init__(self, metrics: Metrics, expectation: Expectation) -> None:
        self._metrics, self._expectation = metrics, expectation

    def write(self, row: Row) -> None:
        self._metrics.write({**row, **self._expectation.figures(row["step"])})
        if said := self._expectation.judge(row):
            self.say(f"hvd-lm: warning: {said}")

    def say(self, message: str) -> None:
        self._metrics.say(message)


def expecting(metrics: Metrics, link: Link | None, framework: Framework, work: Work, topology: TopologyConfig, job: Job) -> Metrics:
    """`metrics` of a run of `work`, with what is predicted of it, which is told in a line, by a `link`.

    As they are where there is none, and, after a warning, where it says nothing of this run.
    """
    if link is None:
        return metrics
    try:
        if reason := unlike(link, job):
            raise ConfigError(reason)
        expected = [
            Phase(first, predict(link, framework, replace(work, communication=its), topology, job.topology.size), its.reduce_every)
            for first, its in phases(work.communication)
        ]
    except HvdLmError as error:
        warn(f"--link predicts nothing of this run: {error}")
        return metrics
    metrics.say(_said(expected))
    window = work.communication.backward_passes_per_step * work.data.batch_size * work.data.sequence_length
    return ExpectingMetrics(metrics, Expectation(expected, window * job.topology.readers))


def unlike(link: Link, job: Job) -> str | None:
    """Why a step of `job` is not what was measured; None if it may be."""
    if (here := processor()) != link.processor:
        return f"it was measured on {link.processor}, and rank 0 is on {here}"
    if is_cpu(link.device) != is_cpu(device := job.summary().partition(", ")[0]):
        return f"it was measured with {link.device}, and rank 0 has {device}"
    if link.threads != job.threads:
        return f"it was measured with {link.threads} thread(s) a rank, and rank 0 has {job.threads}"
    if job.topology.size == 1:
        return None
    if link.controller != job.controller:
        return f"it was measured over {link.controller}, and this run is over {job.controller}"
    if (hosts := len(set(job.hosts))) != link.hosts and 1 in (hosts, link.hosts):
        return f"it was measured on {link.hosts} host(s), and this run has {hosts}"
    return None


def is_cpu(device: str) -> bool:
    """Whether framework, version and device, as a run's headline has them, name no accelerator."""
    return device.lower().endswith("cpu")


def _said(expected: Sequence[Phase]) -> str:
    *begin, last = expected
    its = last.predicted
    before = "".join(
        f", {_time(phase.predicted.step_seconds)} up to step {after.first}"
        for phase, after in zip(begin, expected[1:], strict=True)
    )
    hidden = f", {_time(its.exposed_seconds)} of it communication that nothing hides" if its.ranks > 1 else ""
    return f"predicted: {_time(its.step_seconds)} a step{hidden}{before}"
