"""DDP with no_sync: only the last backward of a window reduces. ``--fp16`` puts PyTorch's fp16_compress_hook on it,
``--powersgd R`` its powerSGD_hook of rank R, in one bucket: with several it deadlocks over Gloo; with ``--batched`` its
batched_powerSGD_hook, which takes all gradients as one square matrix."""

from __future__ import annotations

import contextlib
import sys

import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, batched_powerSGD_hook, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from benchmarks.peers.torch_model import LanguageModel, adam_settings, loss_of, zero_state
from benchmarks.peers.work import WORK, Clock, batches


def main() -> None:
    torch.set_num_threads(WORK.threads)
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    model = DistributedDataParallel(LanguageModel(), bucket_cap_mb=1 << 14 if "--powersgd" in sys.argv else None)
    if "--fp16" in sys.argv:
        model.register_comm_hook(None, fp16_compress_hook)
    if "--powersgd" in sys.argv:
        columns = int(sys.argv[sys.argv.index("--powersgd") + 1])
        # 2 is the smallest number of exact steps that it takes with a warm start: those before the clock counts.
        hook = batched_powerSGD_hook if "--batched" in sys.argv else powerSGD_hook
        model.register_comm_hook(PowerSGDState(None, columns, start_powerSGD_iter=2), hook)
    optimizer = torch.optim.Adam(model.parameters(), **adam_settings())
    data, state, clock = batches(rank, size), zero_state(), Clock(rank)
    for _ in clock.windows():
        total = 0.0
        for micro_batch in range(WORK.accumulation):
            last = micro_batch == WORK.accumulation - 1
            with contextlib.nullcontext() if last else model.no_sync():
                loss, state = loss_of(model, next(data), state)
                (loss / WORK.accumulation).backward()
            total += loss.item() / WORK.accumulation
        optimizer.step()
        optimizer.zero_grad()
        clock.end_window(total)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
