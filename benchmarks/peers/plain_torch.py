"""One process, plain PyTorch: the loop that everything distributed is measured against."""

from __future__ import annotations

import torch

from benchmarks.peers.torch_model import LanguageModel, adam_settings, loss_of, zero_state
from benchmarks.peers.work import WORK, Clock, batches


def main() -> None:
    torch.set_num_threads(WORK.threads)
    model = LanguageModel()
    optimizer = torch.optim.Adam(model.parameters(), **adam_settings())
    data, state, clock = batches(), zero_state(), Clock()
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
