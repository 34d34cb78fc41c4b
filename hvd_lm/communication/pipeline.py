"""``--split layers``, predicted: the ranks of a model group work on one micro-batch after the other, and wait for their neighbours.

All forwards of a window come first, then the backwards. A rank begins a forward when it is done with the one before and what the
rank below made of this micro-batch is there, and a backward when the gradients of the rank above are. Messages of MPI are on their
way beside the work; over Horovod's all-to-all nothing moves before both neighbours have come.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from hvd_lm.communication.gradients import Sent, backward_multiplications, gradients, is_output
from hvd_lm.communication.link import Link
from hvd_lm.communication.measure import Work
from hvd_lm.communication.parts import Parts, Windows, one_after_the_other, thread_of
from hvd_lm.communication.simulation import Served, service_of
from hvd_lm.model.pipeline import multiplications, stages_of_ranks
from hvd_lm.model.stages import parameters, stages

_NORM = Sent("norm", 0.0, 8.0, "float64")


@dataclass(frozen=True)
class Held:
    """By a rank of a model group."""

    forward: float
    """Share of what a forward of the whole model takes."""
    backward: float
    """Share of its backward."""
    update: float
    """Share of its weights."""
    width: int
    """Of what it passes on."""
    names: frozenset[str]
    """Of its parameters."""


def held_by_ranks(work: Work, depth: int) -> tuple[Held, ...]:
    """From below. Raises ConfigError if there are too few layers."""
    declared = stages(work.model)
    forwards = [0.0 if is_output(stage) else multiplications(stage) for stage in declared]
    backwards = list(map(backward_multiplications, declared))
    sizes = {name: math.prod(parameter.shape) for name, parameter in parameters(work.model).items()}
    found = []
    for places in stages_of_ranks(work.model, depth):
        names = frozenset(parameter.name for place in places for parameter in declared[place].parameters.values())
        found.append(
            Held(
                forward=sum(forwards[place] for place in places) / (sum(forwards) or 1.0),
                backward=sum(backwards[place] for place in places) / sum(backwards),
                update=sum(sizes[name] for name in names) / sum(sizes.values()),
                width=declared[places[-1]].output_size,
                names=names,
            )
        )
    return tuple(found)


def pipeline(link: Link, work: Work, windows: Windows, copies: int, depth: int) -> Parts:
    """A step of `copies` pipelines of `depth` ranks each, on the lowest rank, which is done last."""
    held = held_by_ranks(work, depth)
    item = 2 if work.communication.compression == "fp16" else 4
    tokens = work.data.batch_size * work.data.sequence_length
    sizes = [float(item * tokens * rank.width) for rank in held[:-1]]
    ends = _ends(link, windows, held, sizes)
    of_ranks = [_reduced(link, work, windows, held, place, copies) for place in range(depth)]
    exposed = max(end + after for end, (after, _, _) in zip(ends, of_ranks, strict=True)) - ends[0]
    _, sent, operations = of_ranks[0]
    forward, backward = held[0].forward * windows.forward, held[0].backward * windows.backward
    messages = 2 * windows.micro_batches * _message(link, sizes[0])
    return Parts(
        forward=forward,
        backward=backward,
        update=max(rank.update for rank in held) * windows.compute.update,
        exchange=ends[0] - forward - backward,
        exposed=exposed,
        hidden=max(0.0, sum(its.done - its.begun for its in operations) - exposed),
        communication=sum(its.done - its.begun for its in operations) + messages,
        last_backward=held[0].backward * windows.last_backward,
        operations=operations,
        travels=(*((one, 1.0) for one in sent), (_activations(sizes[0]), float(windows.micro_batches))),
    )


def _activations(size: float) -> Sent:
    """Of a micro-batch, one way: an all-to-all of two ranks has as much again for the rank itself, which stays."""
    return Sent("activations", 0.0, 2 * size, "float32", collective="alltoall", ranks=2)


def _message(link: Link, size: float) -> float:
    """Seconds of one of so many bytes between two neighbours."""
    if link.pairs:
        alpha, beta = link.pairs.median(inside=False) or link.pairs.median(inside=True) or (0.0, 0.0)
        return alpha + size * beta
    return link.negotiation(2) + link.seconds("alltoall", 2 * size, 2)


def _ends(link: Link, windows: Windows, held: Sequence[Held], sizes: Sequence[float]) -> list[float]:
    """When each rank is done with its last backward."""
    meet = link.pairs is None
    free = [0.0] * len(held)
    on_the_way = [0.0] * len(sizes)

    def pass_on(place: int, to: int, between: int, micro_batches: int) -> float:
        """When what `place` has made, just now, is with its neighbour."""
        begins = max(free[place], free[to] if meet else on_the_way[between])
        on_the_way[between] = begins + _message(link, micro_batches * sizes[between])
        return on_the_way[between]

    for _ in range(windows.micro_batches):
        there = 0.0
        for place, rank in enumerate(held):
            free[place] = max(free[place], there) + rank.forward * windows.compute.forward
            if place < len(held) - 1:
                there = pass_on(place, place + 1, place, 1)
    on_the_way = [0.0] * len(sizes)
    for together in windows.together:
        there = 0.0
        for place in reversed(range(len(held))):
            free[place] = max(free[place], there) + held[place].backward * windows.backward_of(together)
            if place:
                there = pass_on(place, place - 1, place - 1, together)
    return free


def _reduced(
    link: Link, work: Work, windows: Windows, held: Sequence[Held], place: int, copies: int
) -> tuple[float, tuple[Sent, ...], tuple[Served, ...]]:
    """Of one rank of each pipeline: seconds after its last backward until its gradients are summed, what travels, and how."""
    above = sum(rank.backward for rank in held[place + 1 :]) * windows.last_backward
    own = held[place].backward * windows.last_backward
    thread = thread_of(link, work, service_of(link, copies), copies)
    found = []
    for one in gradients(work.model, work.data, work.communication, copies, windows.last_backward):
        name = one.name.removeprefix("gradient.")
        holders = sum(name in rank.names for rank in held)
        if name in held[place].names and copies * holders > 1:
            # A table that both ends hold is complete with the lookup.
            found.append(replace(one, ready=own if holders > 1 else max(0.0, one.ready - above), ranks=copies * holders))
    thread.serve(found)
    gradients_end = thread.operations[-1].done if found else own
    # The loss and the norm are sums of all ranks, one after the other.
    several = [replace(_NORM, name=name, ranks=copies * len(held)) for name in ("loss", "norm")]
    rest = sum(one_after_the_other([one], thread_of(link, work, service_of(link, copies), copies)) for one in several)
    return max(0.0, gradients_end - own) + rest, (*found, *several), tuple(thread.operations)
