"""What a reduction in a TensorFlow graph adds to the peak of memory, in units of the reduced tensor.

horovodrun -np 2 python in_place.py
"""

from __future__ import annotations

import re
from pathlib import Path

from common import report

import hvd_lm

VALUES = 1 << 26


def resident(kind: str) -> int:
    """Bytes; VmRSS: now, VmHWM: at most since the last reset."""
    found = re.search(rf"{kind}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


def main() -> dict[str, float]:
    adapter = hvd_lm.adapter("tensorflow")
    import tensorflow as tf

    @tf.function
    def reduce(value: tf.Tensor) -> tf.Tensor:
        total = adapter.job.horovod.allreduce(tf.fill((VALUES,), value), op=adapter.job.horovod.Sum, name="in_place")
        return total[0]

    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    total = float(reduce(tf.constant(1.5)))
    return {"sum": total, "tensors": (resident("VmHWM") - before) / (4 * VALUES)}


if __name__ == "__main__":
    report(main())
