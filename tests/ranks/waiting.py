"""How much a rank of PyTorch computes while it waits for another one, as a share of that time.

horovodrun -np 2 python waiting.py torch
"""

from __future__ import annotations

import sys
import time

import numpy as np
from common import report

import hvd_lm

SECONDS = 1.0


def main(framework: str) -> dict[str, float]:
    adapter = hvd_lm.adapter(framework)
    adapter.job.sum(np.ones(1))
    if adapter.job.topology.rank == 1:
        time.sleep(SECONDS)
    waited, computed = -time.perf_counter(), -time.thread_time()
    adapter.job.sum(np.ones(1))
    waited, computed = waited + time.perf_counter(), computed + time.thread_time()
    return {"waited": waited, "computed": computed}


if __name__ == "__main__":
    report(main(*sys.argv[1:]))
