"""FSDP (fully_shard): every parameter, its gradient and its moments divided over the ranks; gathered where it is used."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from benchmarks.peers.torch_model import LanguageModel, adam_settings, loss_of, zero_state
from benchmarks.peers.work import WORK, Clock, batches


def main() -> None:
    torch.set_num_threads(WORK.threads)
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    model, mesh = LanguageModel(), init_device_mesh("cpu", (size,))
    for part in (model.embedding, model.lstm, model.output, model):
        fully_shard(part, mesh=mesh)
    optimizer = torch.optim.Adam([parameter for parameter in model.parameters() if parameter.requires_grad], **adam_settings())
    data, state, clock = batches(rank, size), zero_state(), Clock(rank)
    for _ in clock.windows():
        total = 0.0
        for micro_batch in range(WORK.accumulation):
            model.set_requires_gradient_sync(micro_batch == WORK.accumulation - 1)
            loss, state = loss_of(model, next(data), state)
            (loss / WORK.accumulation).backward()
            total += loss.item() / WORK.accumulation
        optimizer.step()
        optimizer.zero_grad()
        clock.end_window(total)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
