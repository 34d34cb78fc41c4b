"""Weights as a Keras model of stock layers: token ids int32 [B, T] to logits [B, T, V], from a zero state.

    import keras

    model = keras.models.load_model("model.keras")
    logits_BTV = model(tokens_BT)

A tied embedding is in the file twice.
"""

from __future__ import annotations

from pathlib import Path

from hvd_lm.adapters.tensorflow.quiet import native_stderr_closed
from hvd_lm.config import ModelConfig
from hvd_lm.model.weights import Weights, stage_weights

with native_stderr_closed():
    import keras


def write(weights: Weights, model: ModelConfig, path: Path) -> None:
    """The model as one .keras file. Raises OSError."""
    lookup, *cells, output = stage_weights(weights, model)
    lstm = [keras.layers.LSTM(cell.stage.units, return_sequences=True, name=f"lstm_{layer}") for layer, cell in enumerate(cells)]
    embedding = keras.layers.Embedding(model.vocabulary_size, model.embedding_size, name="embedding")
    dense = keras.layers.Dense(model.vocabulary_size, name="output")
    tokens = keras.Input((None,), dtype="int32", name="tokens")
    network = keras.Sequential([tokens, embedding, *lstm, dense], name="lstm_language_model")
    embedding.set_weights([lookup["table"]])
    for layer, cell in zip(lstm, cells, strict=True):
        # Keras' gates have our order; it calls g (the candidate) c.
        layer.set_weights([cell["input_kernel"].T, cell["recurrent_kernel"].T, cell["bias"]])
    dense.set_weights([output["kernel"].T, output["bias"]])
    network.save(path)
