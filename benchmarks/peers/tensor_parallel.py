"""torch.distributed.tensor.parallel: rows of embedding and output divided over the ranks, the loss computed on divided logits.

All ranks read all sequences: what is not divided, the LSTM, every rank computes for all of them, as this library has it.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, loss_parallel, parallelize_module

from benchmarks.peers.torch_model import LanguageModel, adam_settings, loss_of
from benchmarks.peers.work import WORK, Clock, batches


def main() -> None:
    torch.set_num_threads(WORK.threads)
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    model = parallelize_module(
        LanguageModel(),
        init_device_mesh("cpu", (size,)),
        {
            "embedding": RowwiseParallel(input_layouts=Replicate()),
            "output": ColwiseParallel(output_layouts=Shard(-1), use_local_output=False),
        },
    )
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # The fused Adam does not take plain and divided parameters together.
    divided = [parameter for parameter in trained if hasattr(parameter, "placements")]
    plain = [parameter for parameter in trained if not hasattr(parameter, "placements")]
    optimizers = [torch.optim.Adam(parameters, **adam_settings()) for parameters in (divided, plain)]
    zeros = torch.zeros(WORK.layers, WORK.batch_size * size, WORK.hidden_size)
    readers, state, clock = [batches(reader, size) for reader in range(size)], (zeros, zeros), Clock(rank)
    for _ in clock.windows():
        total = 0.0
        for _ in range(WORK.accumulation):
            of_readers = [next(reader) for reader in readers]
            batch = tuple(np.concatenate(parts, axis=1) for parts in zip(*of_readers, strict=True))
            with loss_parallel():
                loss, state = loss_of(model, (batch[0], batch[1]), state)
                (loss / WORK.accumulation).backward()
            total += float(loss) / WORK.accumulation
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        clock.end_window(total)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
