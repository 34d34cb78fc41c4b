"""A snapshot that only the last rank has, passed on to rank 0; each rank reports a digest of what it has in the end.

horovodrun -np 2 python passed_on.py torch CHECKPOINT
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from common import report

import hvd_lm
from hvd_lm import checkpoint as checkpoints
from hvd_lm.training.replicas import checksum
from hvd_lm.training.snapshot import passed_on


def main(framework: str, checkpoint: str) -> dict[str, Any] | None:
    job = hvd_lm.adapter(framework).job
    last = job.topology.size - 1
    snapshot = checkpoints.load(Path(checkpoint))
    if snapshot := passed_on(job, snapshot if job.topology.rank == last else None, last):
        return {
            "step": snapshot.step,
            "weights": checksum(snapshot.weights),
            "moments": checksum(snapshot.optimizer_state.moments),
            "states": checksum({"": snapshot.progress.lstm_state_2SU}),
            "applied": snapshot.optimizer_state.applied_steps,
        }
    return None


if __name__ == "__main__":
    report(main(*sys.argv[1:]))
