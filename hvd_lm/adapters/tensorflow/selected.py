"""Gradients of which few values travel (hvd_lm.compression.selectors), in one message: those of all parameters together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from hvd_lm.adapters.tensorflow.compressed import Compressed, Counts, Send, Summed
from hvd_lm.adapters.tensorflow.quiet import native_stderr_closed
from hvd_lm.adapters.tensorflow.weight import Gradient
from hvd_lm.compression.compressors import Compression
from hvd_lm.compression.kept import KEPT, VELOCITY, Firsts
from hvd_lm.compression.selectors import Selector
from hvd_lm.model.split import Share

with native_stderr_closed():
    import tensorflow as tf
    import tensorflow.experimental.numpy as tnp


class Selected(Compressed):
    """As values that each rank chooses, and their places.

    The norm of a rank's gradient is known when all of it is there. So nothing is sent beside the backward: there is little to send.
    """

    def __init__(self, selector: Selector, firsts: Firsts, remembered: Mapping[str, Share], ranks: int, clip: float) -> None:
        """`clip`: the norm that the gradient of one of the `ranks` is clipped to."""
        super().__init__(firsts, remembered)
        self._selector, self._ranks, self._clip = selector, ranks, clip
        self._weights: dict[str, Gradient] = {}

    def counts(self, applied_steps: int) -> Counts:
        shapes = {name: tuple(self.memory[f"{KEPT}/{name}"].shape) for name in self._firsts}
        return tuple(self._selector.count(name, shape, applied_steps) for name, shape in shapes.items())

    def start(self, weight: Gradient, rows: tf.Tensor | None, sum_of: Send) -> Sequence[tf.Tensor]:  # noqa: ARG002 - sent later
        self._weights[weight.name] = weight
        return ()

    def backward_complete(self, counts: Counts, gather: Send) -> None:
        weights = [self._weights[name] for name in self._firsts]
        norm = tf.linalg.global_norm([weight.gradient for weight in weights])
        # What is not finite has to be seen by all, wherever it is: then nothing of this rank is a number.
        factor = tf.where(tf.math.is_finite(norm), tf.minimum(1.0, self._clip / tf.maximum(norm, 1e-30)), float("nan"))
        parts: list[tf.Tensor] = []
        for weight, count in zip(weights, counts, strict=True):
            # One after the other: what is computed on the way takes memory once.
            with tf.control_dependencies(parts):
                parts += self._take(weight, factor, count)
        messages = tf.reshape(gather(tf.concat(parts, 0), "gradient.selected"), (self._ranks, 2 * sum(counts)))
        pairs = [size for count in counts for size in (count, count)]
        for weight, values_RK, places_RK in zip(weights, *_halves(tf.split(messages, pairs, axis=1)), strict=True):
            total = tf.raw_ops.Empty(shape=(math.prod(weight.shape),), dtype=tf.float32, init=True)
            # In the order of the ranks, each of whose places is another one: all ranks make the same sums.
            for rank in range(self._ranks):
                values = tf.bitcast(values_RK[rank], tf.float32)
                total = tf.tensor_scatter_nd_add(total, places_RK[rank][:, None], values)
            weight.gradient.assign(tf.reshape(total, weight.shape))

    def _take(self, weight: Gradient, factor: tf.Tensor, count: int) -> tuple[tf.Tensor, tf.Tensor]:
        """Add the gradient times `factor` to what is kept, and take `count` values out of it: they, and their places, as int32."""
        kept, velocity = self.memory[f"{KEPT}/{weight.name}"], self.memory.get(f"{VELOCITY}/{weight.name}")
        added = tf.ensure_shape(weight.take_gradient(), weight.shape) * factor
        if velocity is not None:
            added += self._selector.momentum * velocity
        whole = kept + added
        places = tf.cast(tf.ensure_shape(self._selector.select(tnp, whole, count), (count,)), tf.int32)
        values = tf.gather(tf.reshape(whole, (-1,)), places)
        kept.assign(_without(whole, places))
        if velocity is not None:
            velocity.assign(_without(added, places))
        return tf.bitcast(values, tf.int32), places


def _without(tensor: tf.Tensor, places: tf.Tensor) -> tf.Tensor:
    """With zeros at these `places` of the flat tensor."""
    flat = tf.tensor_scatter_nd_update(tf.reshape(tensor, (-1,)), places[:, None], tf.zeros(tf.shape(places)))
    return tf.reshape(flat, tf.shape(tensor))


def _halves(parts: Sequence[tf.Tensor]) -> tuple[Sequence[tf.Tensor], Sequence[tf.Tensor]]:
    return parts[::2], parts[1::2]


def make_compressed(
    compression: Compression, firsts: Firsts, remembered: Mapping[str, Share], ranks: int, clip: float
) -> Compressed:
    """As messages that are summed over the ranks, or as values that each of them selects (`clip`: see `Selected`)."""
    if isinstance(compression, Selector):
        return Selected(compression, firsts, remembered, ranks, clip)
    return Summed(compression, firsts, remembered)
