"""Weights as an ONNX graph, built node by node: torch 2.13's exporter fixes T at the length that it traced.

    inputs   tokens int64 [T, B]; h0, c0 float32 [L, B, H]: zeros where a text begins, h and c of the call before where it goes on
    outputs  logits float32 [T, B, V]; h, c float32 [L, B, H]

T and B are free. Where layers differ in width, h0, c0, h and c are [1, B, U], the layers side by side from below.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, checker, helper, numpy_helper

from hvd_lm.config import ModelConfig
from hvd_lm.model.stages import state_size
from hvd_lm.model.weights import Array, StageWeights, Weights, stage_weights

OPSET, IR_VERSION = 17, 8
"""Of 2022: runtimes older than the installed onnx read them too."""
LARGEST_FILE = 2**31 - 2**20
"""Bytes: protobuf ends at 2 GiB. Larger weights lie in model.onnx.data beside the graph."""


def write(weights: Weights, model: ModelConfig, path: Path) -> None:
    """The graph as one file, or two if it is too large for one. Raises OSError."""
    stages = stage_weights(weights, model)
    initializers = [numpy_helper.from_array(array, name) for name, array in _arrays(stages, model).items()]
    graph = helper.make_graph(list(_nodes(stages, model)), "lstm_language_model", *_inputs_and_outputs(model), initializers)
    made = helper.make_model(graph, producer_name="hvd_lm", ir_version=IR_VERSION, opset_imports=[helper.make_opsetid("", OPSET)])
    size = sum(len(tensor.raw_data) for tensor in initializers)
    onnx.save(made, path, save_as_external_data=size > LARGEST_FILE, location=f"{path.name}.data")
    checker.check_model(path, full_check=True)


def _stacked(model: ModelConfig) -> bool:
    """Whether the layers of a state lie one upon the other, [L, B, H]; else they lie side by side, [1, B, U]."""
    return isinstance(model.hidden_size, int)


def _inputs_and_outputs(model: ModelConfig) -> tuple[list[onnx.ValueInfoProto], list[onnx.ValueInfoProto]]:
    def floats(name: str, *shape: int | str | None) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    state = (len(model.units), "B", model.units[0]) if _stacked(model) else (1, "B", state_size(model))
    tokens = helper.make_tensor_value_info("tokens", TensorProto.INT64, ("T", "B"))
    return (
        [tokens, floats("h0", *state), floats("c0", *state)],
        [floats("logits", "T", "B", model.vocabulary_size), floats("h", *state), floats("c", *state)],
    )


def _arrays(stages: Sequence[StageWeights], model: ModelConfig) -> dict[str, NDArray[Any]]:
    """The constants of the graph. A tied embedding is in it once."""
    lookup, *cells, output = stages
    arrays: dict[str, NDArray[Any]] = {"embedding": lookup["table"], "output_bias": output["bias"]}
    if not model.tie_embedding:
        arrays["output_kernel"] = output["kernel"]
    for layer, cell in enumerate(cells):
        bias = _gates_in_onnx_order(cell["bias"])
        arrays[f"W{layer}"] = _gates_in_onnx_order(cell["input_kernel"])[None]
        arrays[f"R{layer}"] = _gates_in_onnx_order(cell["recurrent_kernel"])[None]
        arrays[f"B{layer}"] = np.concatenate((bias, np.zeros_like(bias)))[None]
    arrays["directions"] = np.array([1], np.int64)
    arrays["state_sizes"] = np.array([1] * len(cells) if _stacked(model) else model.units, np.int64)
    return arrays


def _gates_in_onnx_order(array: Array) -> Array:
    """i, f, g, o along the first axis as i, o, f, g."""
    i, f, g, o = np.split(array, 4)
    return np.concatenate((i, o, f, g))


def _nodes(stages: Sequence[StageWeights], model: ModelConfig) -> Iterator[onnx.NodeProto]:
    _, *cells, _ = stages
    layers = len(cells)

    def each(name: str) -> list[str]:
        return [f"{name}_{layer}" for layer in range(layers)]

    axis = 0 if _stacked(model) else 2
    yield helper.make_node("Gather", ["embedding", "tokens"], ["x_0"])
    yield helper.make_node("Split", ["h0", "state_sizes"], each("h0"), axis=axis)
    yield helper.make_node("Split", ["c0", "state_sizes"], each("c0"), axis=axis)
    for layer, cell in enumerate(cells):
        yield from _layer(layer, cell.stage.units)
    yield helper.make_node("Concat", each("h"), ["h"], axis=axis)
    yield helper.make_node("Concat", each("c"), ["c"], axis=axis)
    yield helper.make_node("Transpose", ["embedding" if model.tie_embedding else "output_kernel"], ["kernel_HV"], perm=(1, 0))
    yield helper.make_node("MatMul", [f"x_{layers}", "kernel_HV"], ["products"])
    yield helper.make_node("Add", ["products", "output_bias"], ["logits"])


def _layer(layer: int, units: int) -> Sequence[onnx.NodeProto]:
    no_lengths = ""
    inputs = [f"x_{layer}", f"W{layer}", f"R{layer}", f"B{layer}", no_lengths, f"h0_{layer}", f"c0_{layer}"]
    outputs_T1BH = f"outputs_{layer}"
    return (
        helper.make_node("LSTM", inputs, [outputs_T1BH, f"h_{layer}", f"c_{layer}"], hidden_size=units),
        helper.make_node("Squeeze", [outputs_T1BH, "directions"], [f"x_{layer + 1}"]),
    )
