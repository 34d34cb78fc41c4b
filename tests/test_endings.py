"""Where a model is after each of several texts: as if each had been read by itself, by the judge."""

from __future__ import annotations

import numpy as np
import pytest
import reference_lstm
from conftest import MakeAdapter

from hvd_lm.config import ModelConfig
from hvd_lm.evaluation.endings import endings
from hvd_lm.model.weights import initial_weights


@pytest.mark.parametrize(("batch_size", "sequence_length"), [(4, 100), (3, 5), (1, 1), (100, 7)])
def test_texts_of_any_length(make_adapter: MakeAdapter, batch_size: int, sequence_length: int) -> None:
    model = ModelConfig(30, embedding_size=6, hidden_size=(8, 5))
    weights = {name: 3 * array for name, array in initial_weights(model, seed=3).items()}
    adapter = make_adapter(model)
    adapter.load_weights(weights)
    generator = np.random.default_rng(1)
    texts = [generator.integers(0, 30, length, dtype=np.int32) for length in (9, 1, 17, 9, 4, 17, 2)]
    seen = []
    for of in endings(adapter, texts, batch_size, sequence_length):
        for column, number in enumerate(of.texts):
            judged = reference_lstm.run(weights, texts[number][:, None], texts[number][:, None])
            h_and_c = [np.concatenate([kind[0] for kind in kinds]) for kinds in zip(*judged.state, strict=True)]
            np.testing.assert_allclose(of.state_2BU[:, column], h_and_c, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(of.logits_BV[column], judged.logits_TBV[-1, 0], rtol=1e-4, atol=1e-4)
            seen.append(int(number))
    assert sorted(seen) == list(range(len(texts)))
