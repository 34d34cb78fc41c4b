"""What each collective operation that is timed makes of values that tell whose they are.

horovodrun -np 2 python probed.py torch
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from common import report

from hvd_lm.adapters import adapter_class
from hvd_lm.communication.ring import COLLECTIVES


def main(framework: str) -> dict[str, Any]:
    job = adapter_class(framework).job_class()
    probe, found = job.probe_class(job), {}
    for number_format in ("float32", "float16"):
        values = np.arange(4).astype(number_format) + 10 * job.topology.rank
        for name in COLLECTIVES:
            act = probe.operation(name, values)
            assert act
            made = act()
            made = made[0] if isinstance(made, list) else made
            found[f"{name} {number_format}"] = np.asarray(made).tolist()
    found["several"] = [np.asarray(one).tolist() for one in probe.several(3, 2)()]
    return found


if __name__ == "__main__":
    report(main(*sys.argv[1:]))
