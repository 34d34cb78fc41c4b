"""Weights for plain PyTorch: a state_dict that fits the module anyone would write.

    import json
    from pathlib import Path

    import torch
    from torch import nn

    class LanguageModel(nn.Module):
        def __init__(self, vocabulary_size, embedding_size, hidden_size, layers):
            super().__init__()
            self.embedding = nn.Embedding(vocabulary_size, embedding_size)
            self.lstm = nn.LSTM(embedding_size, hidden_size, num_layers=layers)
            self.output = nn.Linear(hidden_size, vocabulary_size)

        def forward(self, tokens_TB, state=None):
            activations, state = self.lstm(self.embedding(tokens_TB), state)
            return self.output(activations), state

    sizes = json.loads(Path("model.json").read_text())["model"]
    model = LanguageModel(*(sizes[name] for name in ("vocabulary_size", "embedding_size", "hidden_size", "layers")))
    model.load_state_dict(torch.load("model.pt", weights_only=True))

The second bias of nn.LSTM is zero. A tied embedding is one tensor under two names, and in the file once.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from hvd_lm.config import ModelConfig
from hvd_lm.model.weights import Weights, stage_weights


def write(weights: Weights, model: ModelConfig, path: Path) -> None:
    """The state_dict of the module above. Raises OSError."""
    lookup, *cells, output = stage_weights(weights, model)
    state = {"embedding.weight": torch.tensor(lookup["table"])}
    for layer, cell in enumerate(cells):
        bias = torch.tensor(cell["bias"])
        state[f"lstm.weight_ih_l{layer}"] = torch.tensor(cell["input_kernel"])
        state[f"lstm.weight_hh_l{layer}"] = torch.tensor(cell["recurrent_kernel"])
        state[f"lstm.bias_ih_l{layer}"] = bias
        state[f"lstm.bias_hh_l{layer}"] = torch.zeros_like(bias)
    state["output.weight"] = state["embedding.weight"] if model.tie_embedding else torch.tensor(output["kernel"])
    state["output.bias"] = torch.tensor(output["bias"])
    _save(state, path)


def _save(state: dict[str, Tensor], path: Path) -> None:
    # Through a file of Python's, so that a full disk is an OSError.
    with path.open("wb") as file:
        torch.save(state, file)
