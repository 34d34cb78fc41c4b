"""What a job tells its user beside its results: rank 0 speaks."""

from __future__ import annotations

import sys

from hvd_lm.job.launcher import launched_rank


def tell(message: str) -> None:
    """Tell the user what a job does before it has anywhere else to: one line on standard error, by rank 0."""
    if launched_rank() == 0:
        print(message, file=sys.stderr, flush=True)


def warn(message: str) -> None:
    """Tell the user something that does not end the job: one line on standard error, by rank 0."""
    if launched_rank() == 0:
        print(f"hvd-lm: warning: {message}", file=sys.stderr, flush=True)
