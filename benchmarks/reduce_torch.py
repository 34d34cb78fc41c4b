"""A rank of ``python -m benchmarks reduction``: torch.distributed's all-reduce of one tensor over Gloo."""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist

from benchmarks.repeat import timed


def main() -> None:
    values, repeats = int(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    # Sums of zeros stay zeros: no repetition overflows, and none needs to refill.
    full, half = torch.zeros(values), torch.zeros(values, dtype=torch.float16)

    def compressed() -> None:
        wire = full.half()
        dist.all_reduce(wire)
        wire.float()

    actions = {"fp32": lambda: dist.all_reduce(full), "fp16": lambda: dist.all_reduce(half), "fp16 and casts": compressed}
    timed(actions, repeats, dist.get_rank(), dist.barrier)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
