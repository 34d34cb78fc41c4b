"""A synchronous parameter server over PyTorch's RPC, after its tutorial "batch RPC processing with asynchronous executions".

The last process is the server, beside the first trainer; a trainer sends its gradients and gets the new weights back when
those of all trainers are in.
"""

from __future__ import annotations

import os
import threading

import torch
from torch import Tensor
from torch.distributed import rpc
from torch.futures import Future

from benchmarks.peers.torch_model import LanguageModel, adam_settings, loss_of, zero_state
from benchmarks.peers.work import WORK, Clock, batches

SERVER = "server"
_TIMEOUT = 3600.0


def trained(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


class ParameterServer:
    """Averages what the trainers send, and steps when the last one has sent."""

    instance: ParameterServer

    def __init__(self, trainers: int) -> None:
        self.trainers, self.received = trainers, 0
        self.lock = threading.Lock()
        self.updated: Future[list[Tensor]] = Future()
        self.parameters = trained(LanguageModel())
        self.gradients = [torch.zeros_like(parameter) for parameter in self.parameters]
        for parameter, total in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = total
        self.optimizer = torch.optim.Adam(self.parameters, **adam_settings())

    @staticmethod
    @rpc.functions.async_execution
    def update(gradients: list[Tensor]) -> Future[list[Tensor]]:
        self = ParameterServer.instance
        with self.lock:
            for total, gradient in zip(self.gradients, gradients, strict=True):
                total.add_(gradient, alpha=1 / self.trainers)
            self.received += 1
            updated = self.updated
            if self.received == self.trainers:
                self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=False)
                self.received, self.updated = 0, Future()
                updated.set_result([parameter.detach() for parameter in self.parameters])
        return updated


def train(rank: int, trainers: int) -> None:
    model = LanguageModel()
    parameters = trained(model)
    data, state, clock = batches(rank, trainers), zero_state(), Clock(rank)
    for _ in clock.windows():
        total = 0.0
        for _ in range(WORK.accumulation):
            loss, state = loss_of(model, next(data), state)
            (loss / WORK.accumulation).backward()
            total += loss.item() / WORK.accumulation
        new = rpc.rpc_sync(SERVER, ParameterServer.update, args=([parameter.grad for parameter in parameters],))
        with torch.no_grad():
            for parameter, value in zip(parameters, new, strict=True):
                parameter.copy_(value)
        model.zero_grad()
        clock.end_window(total)


def main() -> None:
    torch.set_num_threads(WORK.threads)
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    trainers = size - 1
    options = rpc.TensorPipeRpcBackendOptions(rpc_timeout=_TIMEOUT)
    if rank == trainers:
        ParameterServer.instance = ParameterServer(trainers)
        rpc.init_rpc(SERVER, rank=rank, world_size=size, rpc_backend_options=options)
    else:
        rpc.init_rpc(f"trainer{rank}", rank=rank, world_size=size, rpc_backend_options=options)
        train(rank, trainers)
    rpc.shutdown()


if __name__ == "__main__":
    main()
