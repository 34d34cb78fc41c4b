"""DDP with no_sync and torch's post-local SGD: ``PERIOD`` steps of each rank's own, then the mean of the weights."""

from __future__ import annotations

import contextlib
import sys

import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.post_localSGD_hook import PostLocalSGDState, post_localSGD_hook
from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
from torch.distributed.optim import PostLocalSGDOptimizer
from torch.nn.parallel import DistributedDataParallel

from benchmarks.peers.torch_model import LanguageModel, adam_settings, loss_of, zero_state
from benchmarks.peers.work import WORK, Clock, batches


def main() -> None:
    torch.set_num_threads(WORK.threads)
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    model = DistributedDataParallel(LanguageModel())
    hook = PostLocalSGDState(None, dist.group.WORLD, start_localSGD_iter=WORK.warmup, post_local_gradient_allreduce=False)
    model.register_comm_hook(hook, post_localSGD_hook)
    averager = PeriodicModelAverager(period=int(sys.argv[1]), warmup_steps=WORK.warmup)
    optimizer = PostLocalSGDOptimizer(torch.optim.Adam(model.parameters(), **adam_settings()), averager)
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
