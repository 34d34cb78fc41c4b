"""What the multi-rank bodies share.

Each body is a plain script, for one rank or under horovodrun, whose `main` also runs in started ranks (see `pools`).
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from hvd_lm.adapters.base import Adapter
from hvd_lm.config import ModelConfig, OptimizerConfig
from hvd_lm.job import launcher
from hvd_lm.model.weights import Weights, initial_weights

MODEL = ModelConfig(vocabulary_size=50, embedding_size=12, hidden_size=16, layers=2)


def report(value: Any) -> None:
    """Hand the result of this rank to the test that launched it; without a test, print it."""
    text = json.dumps(value)
    if folder := os.environ.get("HVD_LM_TEST_RESULTS"):
        (Path(folder) / f"{launcher.launched_rank()}.json").write_text(text)
    else:
        print(f"rank {launcher.launched_rank()}: {text}", flush=True)


def build(adapter: Adapter, model: ModelConfig = MODEL, update: OptimizerConfig | None = None) -> Adapter:
    adapter.build(model, update or OptimizerConfig())
    adapter.load_weights(initial_weights(model, seed=4))
    return adapter


def as_lists(arrays: Weights) -> dict[str, Any]:
    """What JSON can hold of them."""
    return {name: array.tolist() for name, array in arrays.items()}


def checksum(weights: Weights) -> float:
    """A figure that two sets of weights share only if they are the same to the bit."""
    return float(sum(np.abs(w.astype(np.float64)).sum() * (k + 1) for k, w in enumerate(weights.values())))
