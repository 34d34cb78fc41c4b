"""How often the threads of a rank that has nothing to reduce wake up, and how soon a tensor is reduced all the same.

horovodrun -np 2 python idle.py torch
horovodrun -np 4 python idle.py torch 2    with process sets
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
from common import report

import hvd_lm

SECONDS = 2.0


def wake_ups() -> int:
    """How often any thread of this process has gone to sleep so far."""
    statuses = [path.read_text() for path in Path("/proc/self/task").glob("*/status")]
    lines = [line for status in statuses for line in status.splitlines() if line.startswith("voluntary_ctxt_switches")]
    return sum(int(line.split()[1]) for line in lines)


def main(framework: str, model_parallel: str = "1") -> dict[str, float]:
    adapter = hvd_lm.adapter(framework, topology=hvd_lm.TopologyConfig(model_parallel=int(model_parallel)))
    adapter.job.sum(np.ones(1))
    before = wake_ups()
    time.sleep(SECONDS)
    idle = wake_ups() - before
    seconds = []
    for _ in range(20):
        # Long enough for the background thread to fall asleep.
        time.sleep(0.01)
        started = time.perf_counter()
        adapter.job.sum(np.ones(1))
        seconds.append(time.perf_counter() - started)
    return {"wake_ups_per_second": idle / SECONDS, "median_seconds": float(np.median(seconds))}


if __name__ == "__main__":
    report(main(sys.argv[1]))
