"""The judge: the language model in plain NumPy, float64, forward and gradients by hand (back-propagation through time).

It knows only the canonical weights of hvd_lm.model.parameters, and from their names and shapes which cell a layer is (LSTM, with
a projection or without, or multiplicative LSTM) and how wide, and whether the softmax is adaptive; then logits are log
probabilities. `test_reference_lstm.py` checks it against finite differences.

Shapes: T time, B sequences, V vocabulary, D input width, H units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import reference_attention
from numpy.typing import NDArray

Array = NDArray[np.float64]
State = list[tuple[Array, Array]]


def sigmoid(x: Array) -> Array:
    return 1.0 / (1.0 + np.exp(-x))


@dataclass
class Outcome:
    """Forward and backward of one micro-batch."""

    logits_TBV: Array
    loss_sum: float
    gradients: dict[str, Array]
    state: State
    penalty: float = 0.0
    """Whose gradient is a part of that of the weights."""


@dataclass
class _Layer:
    inputs_TBD: Array
    h: list[Array] = field(default_factory=list)
    c: list[Array] = field(default_factory=list)
    gates: list[tuple[Array, Array, Array, Array]] = field(default_factory=list)
    recurrent: list[tuple[Array, Array, Array]] = field(default_factory=list)
    """Of the multiplicative LSTM: what stands in for h, and its two factors."""
    cells: list[Array] = field(default_factory=list)
    """Of the LSTM with a projection: what it projects."""


def run(
    weights: Mapping[str, NDArray[np.floating]],
    inputs_TB: NDArray[np.int32],
    targets_TB: NDArray[np.int32],
    state: State | None = None,
    masks: Sequence[NDArray[np.bool_] | Array] = (),
    keep_probability: float = 1.0,
    sampled: tuple[NDArray[np.int32], int] | None = None,
    source_end: int | None = None,
    activation_penalty: float = 0.0,
    temporal_penalty: float = 0.0,
) -> Outcome:
    """Cross-entropy summed over the targets >= 0, and its gradient for every weight.

    Besides, the gradient of penalties, of the tokens that count: of squares of what goes to the output, and of its differences from
    token to token before a mask. `sampled`: the candidates of a sampled softmax, and in how many log-uniform draws they were found.
    `source_end`: the token that ends a source, with which the inputs begin, and which is attended to.
    """
    w = {name: np.asarray(value, np.float64) for name, value in weights.items()}
    normalized = {name.removesuffix(".gain"): w.pop(name) for name in list(w) if name.endswith(".gain")}
    stored = {name: w[name] for name in normalized}
    w |= {name: gain[:, None] * stored[name] / np.linalg.norm(stored[name], axis=1)[:, None] for name, gain in normalized.items()}
    layers = sum(name.endswith(".recurrent_kernel") for name in w)
    shapes = [w[f"lstm.{index}.recurrent_kernel"].shape for index in range(layers)]
    steps, batch = inputs_TB.shape
    state = state or [(np.zeros((batch, width)), np.zeros((batch, gates // 4))) for gates, width in shapes]
    scales = [mask / keep_probability for mask in masks] or [np.ones(())] * (layers + 1)

    # Forward
    x_TBD = w["embedding"][inputs_TB] * scales[0]
    tape: list[_Layer] = []
    after: State = []
    for index in range(layers):
        layer = _Layer(x_TBD, h=[state[index][0]], c=[state[index][1]])
        of_input, of_h = (w.get(f"lstm.{index}.multiplicative_{which}_kernel") for which in ("input", "recurrent"))
        projection = w.get(f"lstm.{index}.projection_kernel")
        for t in range(steps):
            h = layer.h[-1]
            if of_input is not None and of_h is not None:
                factors = x_TBD[t] @ of_input.T, h @ of_h.T
                h = factors[0] * factors[1]
                layer.recurrent.append((h, *factors))
            z = x_TBD[t] @ w[f"lstm.{index}.input_kernel"].T + h @ w[f"lstm.{index}.recurrent_kernel"].T
            i, f, g, o = np.split(z + w[f"lstm.{index}.bias"], 4, axis=1)
            i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
            layer.c.append(f * layer.c[-1] + i * g)
            h = o * np.tanh(layer.c[-1])
            if projection is not None:
                layer.cells.append(h)
                h = h @ projection.T
            layer.h.append(h)
            layer.gates.append((i, f, g, o))
        tape.append(layer)
        after.append((layer.h[-1], layer.c[-1]))
        x_TBD = np.stack(layer.h[1:])
        if source_end is not None and index == layers - 1:
            x_TBD, attended = reference_attention.forward(w, x_TBD, inputs_TB, source_end)
        raw_TBH = x_TBD
        x_TBD = raw_TBH * scales[index + 1]
    kernel = w.get("output_kernel", w["embedding"])
    logits_TBV = _adaptive(w, x_TBD) if _tails(w) else x_TBD @ kernel.T + w["output_bias"]

    # Loss
    judged_TBV = logits_TBV if sampled is None else _of_samples(logits_TBV, targets_TB, *sampled)
    shifted = judged_TBV - judged_TBV.max(-1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    counted = targets_TB >= 0
    targets = np.where(counted, targets_TB, 0)
    picked = np.take_along_axis(log_probabilities, targets[..., None], -1)[..., 0]
    loss_sum = float(-(picked * counted).sum())

    # Backward
    gradients = {name: np.zeros_like(value) for name, value in w.items()}
    d_logits = np.exp(log_probabilities)
    np.put_along_axis(d_logits, targets[..., None], np.take_along_axis(d_logits, targets[..., None], -1) - 1.0, -1)
    d_logits *= counted[..., None]
    if _tails(w):
        d_x = _adaptive_backward(w, x_TBD, d_logits, gradients)
    else:
        gradients["output_kernel" if "output_kernel" in w else "embedding"] += np.einsum("tbv,tbh->vh", d_logits, x_TBD)
        gradients["output_bias"] += d_logits.sum((0, 1))
        d_x = d_logits @ kernel
    changes = np.diff(raw_TBH, axis=0)
    of_squares, of_changes = (factor / raw_TBH.shape[-1] * counted[..., None] for factor in (activation_penalty, temporal_penalty))
    penalty = float((of_squares * x_TBD**2).sum() + (of_changes[1:] * changes**2).sum())
    d_x = d_x + 2 * of_squares * x_TBD
    for index in reversed(range(layers)):
        layer = tape[index]
        d_x = d_x * scales[index + 1]
        if index == layers - 1:
            d_x[1:] += 2 * of_changes[1:] * changes
            d_x[:-1] -= 2 * of_changes[1:] * changes
        if source_end is not None and index == layers - 1:
            d_x = reference_attention.backward(w, attended, d_x, gradients)
        d_inputs = np.zeros_like(layer.inputs_TBD)
        d_h, d_c = (np.zeros_like(one[0]) for one in (layer.h, layer.c))
        projection = w.get(f"lstm.{index}.projection_kernel")
        for t in reversed(range(steps)):
            i, f, g, o = layer.gates[t]
            tanh_c = np.tanh(layer.c[t + 1])
            d_h = d_h + d_x[t]
            if projection is not None:
                gradients[f"lstm.{index}.projection_kernel"] += d_h.T @ layer.cells[t]
                d_h = d_h @ projection
            d_c = d_c + d_h * o * (1 - tanh_c**2)
            d_z = np.concatenate(
                (d_c * g * i * (1 - i), d_c * layer.c[t] * f * (1 - f), d_c * i * (1 - g**2), d_h * tanh_c * o * (1 - o)), 1
            )
            gradients[f"lstm.{index}.input_kernel"] += d_z.T @ layer.inputs_TBD[t]
            gradients[f"lstm.{index}.bias"] += d_z.sum(0)
            d_inputs[t] = d_z @ w[f"lstm.{index}.input_kernel"]
            d_h, d_c = d_z @ w[f"lstm.{index}.recurrent_kernel"], d_c * f
            if not layer.recurrent:
                gradients[f"lstm.{index}.recurrent_kernel"] += d_z.T @ layer.h[t]
                continue
            m, from_input, from_h = layer.recurrent[t]
            gradients[f"lstm.{index}.recurrent_kernel"] += d_z.T @ m
            d_from_input, d_from_h = d_h * from_h, d_h * from_input
            gradients[f"lstm.{index}.multiplicative_input_kernel"] += d_from_input.T @ layer.inputs_TBD[t]
            gradients[f"lstm.{index}.multiplicative_recurrent_kernel"] += d_from_h.T @ layer.h[t]
            d_inputs[t] += d_from_input @ w[f"lstm.{index}.multiplicative_input_kernel"]
            d_h = d_from_h @ w[f"lstm.{index}.multiplicative_recurrent_kernel"]
        d_x = d_inputs
    np.add.at(gradients["embedding"], inputs_TB, d_x * scales[0])
    for name, gain in normalized.items():
        norms = np.linalg.norm(stored[name], axis=1)[:, None]
        by_gain = (gradients[name] * stored[name] / norms).sum(1)
        gradients[name] = gain[:, None] / norms * (gradients[name] - by_gain[:, None] * stored[name] / norms)
        gradients[f"{name}.gain"] = by_gain
    return Outcome(logits_TBV, loss_sum, gradients, after, penalty)


def _log_softmax(logits: Array) -> Array:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _tails(w: Mapping[str, Array]) -> int:
    return sum(name.startswith("output.tail.") for name in w) // 2


def _adaptive(w: Mapping[str, Array], x_TBH: Array) -> Array:
    """Log probabilities: of a word of the head its own, of others the cluster's and that within it (Grave et al. 2017)."""
    tails = _tails(w)
    head = _log_softmax(x_TBH @ w["output_kernel"].T + w["output_bias"])
    words = head.shape[-1] - tails
    parts = [head[..., :words]]
    for i in range(tails):
        projected = x_TBH @ w[f"output.tail.{i}.projection_kernel"].T
        parts.append(head[..., words + i, None] + _log_softmax(projected @ w[f"output.tail.{i}.kernel"].T))
    return np.concatenate(parts, -1)


def _adaptive_backward(w: Mapping[str, Array], x_TBH: Array, d_TBV: Array, gradients: Mapping[str, Array]) -> Array:
    """Of `_adaptive`, whose gradient is `d_TBV`: that by its inputs; adds those of the weights."""

    def through(log_probabilities: Array, d: Array, inputs: Array, kernel: str) -> tuple[Array, Array]:
        d_logits = d - np.exp(log_probabilities) * d.sum(-1, keepdims=True)
        gradients[kernel] += np.einsum("tbv,tbh->vh", d_logits, inputs)
        return d_logits, d_logits @ w[kernel]

    tails = _tails(w)
    words = len(w["output_kernel"]) - tails
    start, d_head, d_x = words, [d_TBV[..., :words]], np.zeros_like(x_TBH)
    for i in range(tails):
        projection, kernel = f"output.tail.{i}.projection_kernel", f"output.tail.{i}.kernel"
        d = d_TBV[..., start : start + len(w[kernel])]
        start += len(w[kernel])
        d_head.append(d.sum(-1, keepdims=True))
        projected = x_TBH @ w[projection].T
        _, d_projected = through(_log_softmax(projected @ w[kernel].T), d, projected, kernel)
        gradients[projection] += np.einsum("tbp,tbh->ph", d_projected, x_TBH)
        d_x += d_projected @ w[projection]
    head = _log_softmax(x_TBH @ w["output_kernel"].T + w["output_bias"])
    d_logits, d_below = through(head, np.concatenate(d_head, -1), x_TBH, "output_kernel")
    gradients["output_bias"] += d_logits.sum((0, 1))
    return d_x + d_below


def _of_samples(logits_TBV: Array, targets_TB: NDArray[np.int32], words_S: NDArray[np.int32], draws: int) -> Array:
    """Less the log of each word's expected count; without all words that are neither candidates nor the target."""
    size = logits_TBV.shape[-1]
    words = np.arange(size)
    probabilities = np.log((words + 2) / (words + 1)) / np.log(size + 1)
    takes_part = np.isin(words, words_S) | (words == np.maximum(targets_TB, 0)[..., None])
    return np.where(takes_part, logits_TBV - np.log(1 - (1 - probabilities) ** draws), -np.inf)
