"""DDP as tutorials write it: the backward of every micro-batch reduces, also while gradients accumulate."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from benchmarks.peers.torch_model import LanguageModel, adam_settings, loss_of, zero_state
from benchmarks.peers.work import WORK, Clock, batches


def main() -> None:
    torch.set_num_threads(WORK.threads)
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    model = DistributedDataParallel(LanguageModel())
    optimizer = torch.optim.Adam(model.parameters(), **adam_settings())
    data, state, clock = batches(rank, size), zero_state(), Clock(rank)
    for _ in clock.windows():
        total = 0.0
        for _ in range(WORK.accumulation):
            loss, state = loss_of(model, next(data), state)
            (loss / WORK.accumulation).backward()
            total += loss.item() / WORK.accumulation
        optimizer.step()
        optimizer.zero_grad()
        clock.end_window(total)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
