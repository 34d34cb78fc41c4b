"""What goes wrong on one rank ends all, with one message: a collective call that fails, or a rank that is in trouble alone."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING

from hvd_lm.errors import HvdLmError, LostWorkerError, in_family
from hvd_lm.job.agreement import of_one_rank

if TYPE_CHECKING:
    from hvd_lm.adapters.job import Job

_LEFT = "Horovod has been shut down"
"""What Horovod says where a rank has left."""


@contextlib.contextmanager
def ending_together(job: Job) -> Iterator[None]:
    """What is raised within ends all ranks.

    Raises LostWorkerError for a collective call that failed. What the ranks have not agreed on they cannot agree on any more: this
    rank leaves the job, and raises it as one of the family of HvdLmError.
    """
    try:
        with job.watch.kept():
            yield
    except job.communication_errors as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason = next((line for line in lines if "Horovod" in line), lines[0])  # TensorFlow's begin with the graph
        what = f"a collective operation failed, probably because another rank ended ({reason})"
        lost = LostWorkerError(f"{what}: look after its host, then start the job again, training with --resume auto")
        if _LEFT in reason:
            lost.speaker = None
        raise lost from error
    except HvdLmError:
        raise
    except Exception as error:
        if error is job.trouble.error:
            raise
        if not job.groups["all"].communicates:
            if told := in_family(error):
                raise told from error
            raise
        job.abandon()
        rank = job.topology.rank
        raise of_one_rank(error, rank, f"rank {rank} on {socket.gethostname()}") from error
