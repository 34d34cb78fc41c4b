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
from hvd_lm.model.weights import Weights

with native_stderr_closed():
    import keras


def write(weights: Weights, model: ModelConfig, path: Path) -> None:
    """The model as one .keras file. Raises OSError."""
    network = keras.Sequential(
        [
            keras.Input((None,), dtype="int32", name="tokens"),
            keras.layers.Embedding(model.vocabulary_size, model.embedding_size, name="embedding"),
            *(keras.layers.LSTM(model.hidden_size, return_sequences=True, name=f"lstm_{layer}") for layer in range(model.layers)),
            keras.layers.Dense(model.vocabulary_size, name="output"),
        ],
        name="lstm_language_model",
    )
    network.get_layer("embedding").set_weights([weights["embedding"]])
    for layer in range(model.layers):
        # Keras' gates have our order; it calls g (the candidate) c.
        kernels = [weights[f"lstm.{layer}.{name}"].T for name in ("input_kernel", "recurrent_kernel")]
        network.get_layer(f"lstm_{layer}").set_weights([*kernels, weights[f"lstm.{layer}.bias"]])
    output_kernel = weights["embedding" if model.tie_embedding else "output_kernel"]
    network.get_layer("output").set_weights([output_kernel.T, weights["output_bias"]])
    network.save(path)
