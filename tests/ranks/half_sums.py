"""Sums of halves over two ranks, beside those of NumPy: every half, with neighbours, denormals, infinities and NaN; odd lengths.

horovodrun -np 2 python half_sums.py torch
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from common import report
from numpy.typing import NDArray

import hvd_lm

SPECIAL = np.array([0.0, -0.0, 1.0, -14208.0, 6e-8, 65504.0, -65504.0, 0.1, np.inf, np.nan], np.float16)


def tensor(framework: str, values: NDArray[np.float16]) -> Any:
    if framework == "torch":
        import torch

        return torch.from_numpy(values)
    import tensorflow as tf

    return tf.constant(values)


def main(framework: str) -> dict[str, int]:
    adapter = hvd_lm.adapter(framework)
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    pairs = [(every, np.full_like(every, special)) for special in SPECIAL] + [(every, np.roll(every, 7))]
    pairs += [(every[100 : 100 + length], every[20_000 : 20_000 + length]) for length in range(1, 66)]
    wrong = 0
    for index, pair in enumerate(pairs):
        mine = tensor(framework, pair[adapter.job.topology.rank].copy())
        total = adapter.job.horovod.allreduce(mine, op=adapter.job.horovod.Sum, name=f"pair.{index}").numpy()
        with np.errstate(all="ignore"):
            expected = pair[0] + pair[1]
        same = (total.view(np.uint16) == expected.view(np.uint16)) | (np.isnan(total) & np.isnan(expected))
        wrong += int((~same & ~((total == 0) & (expected == 0))).sum())
    return {"wrong": wrong, "pairs": sum(len(pair[0]) for pair in pairs)}


if __name__ == "__main__":
    report(main(sys.argv[1]))
