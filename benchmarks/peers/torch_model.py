"""The model as a user of PyTorch writes it, and its loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.peers.work import WORK, weights

State = tuple[Tensor, Tensor]


class LanguageModel(nn.Module):
    """Embedding -> nn.LSTM of L layers -> Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORK.vocabulary_size, WORK.embedding_size)
        self.lstm = nn.LSTM(WORK.embedding_size, WORK.hidden_size, WORK.layers)
        self.output = nn.Linear(WORK.hidden_size, WORK.vocabulary_size)
        self._load()

    def _load(self) -> None:
        embedding, *layers, output = weights()
        state = {"embedding.weight": embedding["table"], "output.weight": output["kernel"], "output.bias": output["bias"]}
        for number, layer in enumerate(layers):
            state[f"lstm.weight_ih_l{number}"] = layer["input_kernel"]
            state[f"lstm.weight_hh_l{number}"] = layer["recurrent_kernel"]
            state[f"lstm.bias_ih_l{number}"] = layer["bias"]
            # Two trained biases would be another model than Keras' and ours.
            state[f"lstm.bias_hh_l{number}"] = np.zeros_like(layer["bias"])
            self.lstm.get_parameter(f"bias_hh_l{number}").requires_grad_(False)
        self.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()})

    def forward(self, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        outputs, (h, c) = self.lstm(self.embedding(inputs), state)
        return self.output(outputs), (h.detach(), c.detach())


def zero_state() -> State:
    zeros = torch.zeros(WORK.layers, WORK.batch_size, WORK.hidden_size)
    return zeros, zeros


def loss_of(model: nn.Module, batch: tuple[NDArray[np.int64], NDArray[np.int64]], state: State) -> tuple[Tensor, State]:
    """Mean cross-entropy of a micro-batch, and the state after."""
    inputs, targets = map(torch.from_numpy, batch)
    logits, state = model(inputs, state)
    return functional.cross_entropy(logits.flatten(0, 1), targets.flatten()), state


def adam_settings() -> dict[str, Any]:
    """The fast one of torch's Adams, for all peers alike: communication is what they should differ in."""
    return {"lr": WORK.learning_rate, "betas": (0.9, 0.999), "eps": 1e-8, "fused": True}
