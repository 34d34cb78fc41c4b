"""What may go wrong, when, and what comes of it: test_faults.py does it, docs/faults.py writes it into docs/faults.md."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Then = Literal["resumed", "begins", "goes on", "as before"]
THEN: dict[Then, str] = {
    "resumed": "`--resume auto` goes on",
    "begins": "the same command begins",
    "goes on": "it goes on by itself",
    "as before": "nothing was changed",
}
"""How a row's `then` reads. All but the last are compared with a run that nothing happened to."""

PATIENCE = 15
"""--stall-shutdown-seconds of the rows that need a bound; the page says what it is by default."""
GRACE = 5
"""HOROVOD_WORKER_TERMINATION_SECONDS, likewise: a process that was stopped hears no SIGTERM."""


@dataclass(frozen=True)
class Row:
    """A fault at a moment, and what is expected."""

    kind: str
    """Which test does it, and with what."""
    fault: str
    moment: str
    says: str
    """A pattern that the one line of the job fits; empty where it need not say anything."""
    told: str
    """The line in short, for the page."""
    within: int
    """Seconds after the fault in which the job has ended, all its processes with it; or gone on."""
    then: Then
    code: int | None = None
    """Of the job; None for any but 0."""
    rank: int = 0
    """The one that meets it."""
    moment_of: str = ""
    """As tests/faults/faulty.py calls it."""
    over: tuple[str, ...] = ("gloo",)
    """Controllers; none where one process is alone."""

    @property
    def id(self) -> str:
        return re.sub(r"\W+", "-", f"{self.fault} {self.moment}").strip("-")


MOMENTS = {
    "reading": "while texts are read",
    "set-up": "in the set-up",
    "training": "amid a step",
    "validation": "in a validation",
    "checkpoint": "while a checkpoint is written",
}
_WHO = {0: "rank 0", 1: "the last rank"}
_KILLED = r"(status code 137|exited on signal 9)"
_LOST = r"hvd-lm: error: (a collective operation failed|rank \d has waited for the others)"


def _killed() -> Iterator[Row]:
    for moment, when in MOMENTS.items():
        for rank, who in _WHO.items():
            then: Then = "begins" if moment in ("reading", "set-up") else "resumed"
            told = "the launcher: which process was killed"
            yield Row("rank", f"kill -9 of {who}", when, _KILLED, told, 20, then, 137, rank, moment, ("gloo", "mpi"))
    fault = "kill -9 of the launcher"
    yield Row("rank", fault, MOMENTS["training"], "", "", 30, "resumed", None, 1, "training", ("gloo", "mpi"))


def _stopped() -> Iterator[Row]:
    # Gloo's time-out or the patience, the pause of rank 1 before it speaks for rank 0, and the launcher's grace.
    for moment, rank in (("reading", 1), ("set-up", 1), ("training", 0), ("training", 1), ("checkpoint", 0)):
        says = r"hvd-lm: error: rank\(s\) 1 did not come to the job|" + _LOST if moment == "reading" else _LOST
        then: Then = "begins" if moment in ("reading", "set-up") else "resumed"
        told = "a rank that waits: which one is missing" if moment == "reading" else "a rank that waits: the others do not answer"
        yield Row("rank", f"SIGSTOP of {_WHO[rank]}", MOMENTS[moment], says, told, 60, then, 4, rank, moment, ("gloo", "mpi"))
    fault = "SIGSTOP of the last rank for 5 s"
    yield Row("pause", fault, MOMENTS["training"], "", "", 30, "goes on", 0, 1, "training", ("gloo", "mpi"))


def _of_folders() -> Iterator[Row]:
    cannot, told = r"hvd-lm: error: cannot write .*No space left on device; make room", "what cannot be written where, and why"
    for moment, when in (("checkpoint", "while a checkpoint is written"), ("metrics", "while metrics are written")):
        yield Row("disk", "disk of --out full", when, cannot, told, 20, "resumed", 2, 0, moment)
    yield Row("prepare disk", "disk of --out full", "in `prepare`", cannot, told, 20, "begins", 2, over=())
    yield Row("prepare kill", "kill -9", "in `prepare`", "", "", 20, "begins", -9, 0, "shards", ())
    cannot = "hvd-lm: error: cannot .*Read-only file system.*another place"
    yield Row("read-only", "read-only folder", "as --out of `train`", cannot, told, 20, "as before", 2)
    yield Row("read-only prepare", "read-only folder", "as --out of `prepare`", cannot, told, 20, "as before", 2, over=())
    yield Row("read-only resume", "read-only folder", "as --resume, with another --out", "", "", 20, "goes on", 0)


def _of_checkpoints() -> Iterator[Row]:
    damaged, told, when = r"weights.safetensors was altered or truncated", "which one is damaged", "`--resume auto`"
    for how in ("truncated", "altered"):
        yield Row(f"checkpoint {how}", f"newest checkpoint {how}", when, damaged, f"{told}; takes the one before", 20, "goes on", 0)
    yield Row("checkpoints truncated", "all checkpoints truncated", when, f"hvd-lm: error: .*{damaged}", told, 20, "as before", 2)
    says = r"hvd-lm: error: --resume auto: the checkpoint has --hidden-size 8, this run 9: make them equal"
    yield Row("other model", "checkpoint of another model", when, says, "what differs", 20, "resumed", 2)
    says = r"hvd-lm: error: 1 of 2 ranks read another text than rank 0 \(.*rank 1 on "
    yield Row("other text", "another text on one host", when, says, "which rank", 20, "resumed", 2, 1)


def _not_a_number() -> Iterator[Row]:
    says, told = r"hvd-lm: error: .*at step 6, which was not applied: .*; the weights of step 5 are ", "which step was not applied"
    lost, not_kept = "no numbers any more, and are not written", "; no checkpoint of such weights"
    for rank, who in _WHO.items():
        fault, when = f"NaN in a gradient of {who}", MOMENTS["training"]
        yield Row("rank", fault, when, f"{says}in", told, 20, "resumed", 3, rank, "gradient")
    for rank, who in _WHO.items():
        fault, of_0 = f"NaN in the weights of {who}", rank == 0
        line, short = (f"{says}{lost}", told + not_kept) if of_0 else (f"{says}in", told)
        yield Row("rank", fault, MOMENTS["training"], line, short, 20, "resumed", 3, rank, "weights")
        how = f"are no numbers any more.*{lost}" if of_0 else "were not those of rank 0"
        line, short = rf"hvd-lm: error: after step 8 the weights of rank {rank} on .* {how}", "which rank" + not_kept * of_0
        yield Row("rank", fault, "before a validation", line, short, 20, "resumed", 3, rank, "validated weights")


def _cut() -> Iterator[Row]:
    fault, when, both = "link between two hosts cut", MOMENTS["training"], ("gloo", "mpi")
    yield Row("link", f"{fault} for 5 s", when, "", "", 40, "goes on", 0, 0, "training", both)
    told = "a rank that waits: the others do not answer"
    yield Row("link", f"{fault} for ever", when, _LOST, told, 60, "resumed", 4, 0, "training")
    # Over MPI the ranks end, too; mpirun ends if its ssh has noticed before they did (docs/faults.md).


def _second_run() -> Row:
    says = r"hvd-lm: error: --out .* is that of a run in progress \(pid \d+ on .*\): wait for its end, or give another --out"
    told, fault = "the second one: who has the folder", "a second run into the folder of a run"
    return Row("second run", fault, MOMENTS["training"], says, told, 20, "goes on", 2, 0, "training")


ROWS = (*_killed(), *_stopped(), *_cut(), *_of_folders(), *_of_checkpoints(), *_not_a_number(), _second_run())
"""Every fault at every moment, in the order of the page."""


def rows(*kinds: str) -> list[Row]:
    return [row for row in ROWS if row.kind in kinds]
