"""PyTorch with Horovod's DistributedOptimizer, as its documentation shows. ``--fp16``: its Compression.fp16."""

from __future__ import annotations

import sys

import horovod.torch as hvd
import torch

from benchmarks.peers.torch_model import LanguageModel, adam_settings, loss_of, zero_state
from benchmarks.peers.work import WORK, Clock, batches


def main() -> None:
    hvd.init()
    torch.set_num_threads(WORK.threads)
    model = LanguageModel()
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    optimizer = hvd.DistributedOptimizer(
        torch.optim.Adam([parameter for _, parameter in named], **adam_settings()),
        named_parameters=named,
        compression=hvd.Compression.fp16 if "--fp16" in sys.argv else hvd.Compression.none,
        backward_passes_per_step=WORK.accumulation,
    )
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)
    # Not hvd.broadcast_optimizer_state: it makes a step with zero gradients first, and Adam's bias correction starts at 2.
    data, state, clock = batches(hvd.rank(), hvd.size()), zero_state(), Clock(hvd.rank())
    for _ in clock.windows():
        total = 0.0
        for _ in range(WORK.accumulation):
            loss, state = loss_of(model, next(data), state)
            (loss / WORK.accumulation).backward()
            total += loss.item() / WORK.accumulation
        optimizer.step()
        optimizer.zero_grad()
        clock.end_window(total)


if __name__ == "__main__":
    main()
