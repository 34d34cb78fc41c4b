"""A rank of ``python -m benchmarks reduction``: Horovod's all-reduce of one tensor, over whatever controller it runs on.

Horovod starts with the settings that training gives it.
"""

from __future__ import annotations

import sys

import horovod.torch as hvd
import torch
from torch import Tensor

from benchmarks.repeat import timed
from hvd_lm.config import CommunicationConfig
from hvd_lm.job.levers import horovod_environment


def main() -> None:
    values, repeats = int(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    with horovod_environment(CommunicationConfig()):
        hvd.init()
    # Sums of zeros stay zeros: no repetition overflows, and none needs to refill.
    full, half = torch.zeros(values), torch.zeros(values, dtype=torch.float16)

    def reduce(tensor: Tensor) -> None:
        hvd.allreduce_(tensor, op=hvd.Sum, name=str(tensor.dtype))

    def compressed() -> None:
        wire, context = hvd.Compression.fp16.compress(full)
        hvd.Compression.fp16.decompress(hvd.allreduce_(wire, op=hvd.Sum, name="compressed"), context)

    actions = {"fp32": lambda: reduce(full), "fp16": lambda: reduce(half), "fp16 and casts": compressed}
    timed(actions, repeats, hvd.rank(), hvd.barrier)


if __name__ == "__main__":
    main()
