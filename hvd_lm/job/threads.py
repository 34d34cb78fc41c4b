"""How many compute threads a rank may use."""

from __future__ import annotations

import os

from hvd_lm.job.launcher import launched_local_size


def default_threads() -> int:
    """Compute threads for a rank: the cores that this process may use, shared by the ranks of the machine."""
    return max(1, len(os.sched_getaffinity(0)) // launched_local_size())
