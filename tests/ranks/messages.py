"""Messages between two ranks, point to point, while Horovod works beside them; and one that never comes.

horovodrun -np 2 --mpi python messages.py torch
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from common import report

from hvd_lm.adapters import adapter_class
from hvd_lm.errors import LostWorkerError
from hvd_lm.job.point_to_point import Link, communicator, obstacle

UP, DOWN = 70, 40
"""Messages in each direction: more than may be on the way together, and fewer."""


def values(rank: int, number: int) -> np.ndarray:
    """Of a message: from none to more than MPI sends without being asked for."""
    return (np.arange(number**3) + 1000 * rank + number).astype(np.float16 if number % 2 else np.float32)


def main(framework: str) -> dict[str, Any]:
    job = adapter_class(framework).job_class(threads=1)
    assert obstacle(job.horovod) == ""
    rank, right = job.topology.rank, True
    link = Link(communicator(), 1 - rank, patience=60)
    for number in range(UP):
        if rank == 0:
            link.send(values(0, number), "activations")
        else:
            right &= comes(link, values(0, number), "activations")
        if number % 10 == 0:
            assert job.sum(np.array([1.0 + number])).tolist() == [2.0 + 2 * number]
    for number in range(DOWN if rank == 1 else 0):
        link.send(values(1, number), "gradients")
    job.barrier()
    if rank == 0:
        right = all(comes(link, values(1, number), "gradients") for number in range(DOWN))
    waited = link.take_waited_seconds()
    try:
        Link(communicator(), 1 - rank, patience=0.1).receive(np.empty(1), "activations")
        said = "a message came"
    except LostWorkerError as error:
        said = str(error)
    return {"right": right, "waited": [waited, link.take_waited_seconds()], "said": said}


def comes(link: Link, expected: np.ndarray, kind: Any) -> bool:
    """Whether just this comes."""
    into = np.full_like(expected, np.nan)
    link.receive(into, kind)
    return bool((into == expected).all())


if __name__ == "__main__":
    report(main(*sys.argv[1:]))
