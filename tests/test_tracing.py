"""TensorFlow compiles each of its functions once: no step, window or length of text traces anything again.

The backward is a function for each number of micro-batches that share it, at the beginning and at the end of a window or not.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conftest import INSTALLED

from hvd_lm.config import ModelConfig, OptimizerConfig
from hvd_lm.model.weights import initial_weights

pytestmark = pytest.mark.skipif("tensorflow" not in INSTALLED, reason="TensorFlow is not installed")


MODELS = {
    "lstm": {},
    "mlstm": {"cell": "mlstm"},
    "projected": {"projection_size": 4},
    "adaptive": {"softmax": "adaptive", "adaptive_cutoffs": (8,)},
}


@pytest.mark.parametrize("settings", MODELS.values(), ids=MODELS)
def test_every_function_is_traced_once(settings: dict[str, Any]) -> None:
    from hvd_lm.adapters import adapter as make
    from hvd_lm.adapters.tensorflow.adapter import TensorFlowAdapter

    model = ModelConfig(vocabulary_size=30, embedding_size=8, hidden_size=(8, 6), **settings)
    adapter = make("tensorflow", threads=1)
    assert isinstance(adapter, TensorFlowAdapter)
    adapter.build(model, OptimizerConfig())
    adapter.load_weights(initial_weights(model, seed=1))
    for window, micro_batches in enumerate((3, 3, 1, 2, 3)):
        for index in range(micro_batches):
            tokens = np.zeros((4 + window, 2), np.int32)
            left = micro_batches - 1 - index
            weight = 0.1 * (window + 1)
            adapter.accumulate(tokens, tokens, adapter.zero_state(2), weight=weight, last=left == 0, defer=left % 2 > 0)
        adapter.step(learning_rate=0.001 * (window + 1), clip=1.0 if window % 2 else None, unscale=1.0)
        adapter.evaluate(tokens, tokens, adapter.zero_state(2))
        adapter.logits(tokens, adapter.zero_state(2))
        adapter.next_logits(tokens, adapter.zero_state(2))
    assert set(adapter._backward) == {
        (*key, False, "exact") for key in ((1, True, False), (2, False, True), (1, True, True), (2, True, True))
    }
    assert adapter._update is not None
    functions = [adapter._forward, *adapter._backward.values(), adapter._update.function]
    functions += [adapter._evaluate, adapter._logits, adapter._next_logits]
    assert [function.traces for function in functions] == [1] * len(functions)
