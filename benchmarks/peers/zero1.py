"""ZeRO stage 1: DDP with no_sync, and ZeroRedundancyOptimizer, which keeps Adam's moments of a parameter on one rank only."""

from __future__ import annotations

import contextlib

import torch
import torch.distributed as dist
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel

from benchmarks.peers.torch_model import LanguageModel, adam_settings, loss_of, zero_state
from benchmarks.peers.work import WORK, Clock, batches


def main() -> None:
    torch.set_num_threads(WORK.threads)
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    model = DistributedDataParallel(LanguageModel())
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = ZeroRedundancyOptimizer(trained, optimizer_class=torch.optim.Adam, **adam_settings())
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
