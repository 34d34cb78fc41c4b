"""The model as a user of TensorFlow writes it: Keras layers; and its loss."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tensorflow as tf

from benchmarks.peers.work import WORK, weights

State = list[list[Any]]


class LanguageModel(tf.keras.Model):
    """Embedding -> LSTM layers -> Dense, batch first as Keras wants it."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = tf.keras.layers.Embedding(WORK.vocabulary_size, WORK.embedding_size)
        self.lstm = [tf.keras.layers.LSTM(WORK.hidden_size, return_sequences=True, return_state=True) for _ in range(WORK.layers)]
        self.dense = tf.keras.layers.Dense(WORK.vocabulary_size)

    def call(self, inputs: Any, state: State) -> tuple[Any, State]:
        activations, after = self.embedding(inputs), []
        for layer, before in zip(self.lstm, state, strict=True):
            activations, h, c = layer(activations, initial_state=before)
            after.append([h, c])
        return self.dense(activations), after

    def load(self) -> LanguageModel:
        """Build, and take the initial weights that every peer has."""
        self(np.zeros((WORK.batch_size, WORK.sequence_length), np.int64), zero_state())
        embedding, *layers, output = weights()
        self.embedding.set_weights([embedding["table"]])
        for layer, values in zip(self.lstm, layers, strict=True):
            layer.set_weights([values["input_kernel"].T, values["recurrent_kernel"].T, values["bias"]])
        self.dense.set_weights([output["kernel"].T, output["bias"]])
        return self


def zero_state() -> State:
    zeros = tf.zeros((WORK.batch_size, WORK.hidden_size))
    return [[zeros, zeros] for _ in range(WORK.layers)]


def loss_of(model: LanguageModel, inputs_TB: Any, targets_TB: Any, state: State) -> tuple[Any, State]:
    """Mean cross-entropy of a micro-batch, and the state after."""
    logits, state = model(tf.transpose(inputs_TB), state)
    losses = tf.keras.losses.sparse_categorical_crossentropy(tf.transpose(targets_TB), logits, from_logits=True)
    return tf.reduce_mean(losses), state


def adam() -> Any:
    # Keras adds epsilon before the bias correction, the others after it: equal to their 1e-8 in the middle of the run.
    middle = (WORK.warmup + WORK.windows) / 2
    epsilon = 1e-8 * math.sqrt(1 - 0.999**middle)
    return tf.keras.optimizers.Adam(WORK.learning_rate, beta_1=0.9, beta_2=0.999, epsilon=epsilon)


def set_threads() -> None:
    tf.config.threading.set_intra_op_parallelism_threads(WORK.threads)
    tf.config.threading.set_inter_op_parallelism_threads(WORK.threads)
