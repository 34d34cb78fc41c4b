"""In which orders elements are summed: 1e17 and -1e17 swallow the 1 between them, unless they meet first.

horovodrun -np 3 python summation_order.py torch 1000000
"""

from __future__ import annotations

import sys

import numpy as np
from common import report

import hvd_lm


def main(framework: str, length: str) -> list[float]:
    adapter = hvd_lm.adapter(framework)
    value = (1e17, 1.0, -1e17)[adapter.job.topology.rank]
    return sorted(set(adapter.job.sum(np.full(int(length), value)).tolist()))


if __name__ == "__main__":
    report(main(*sys.argv[1:]))
