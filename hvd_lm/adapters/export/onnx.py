"""Weights as an ONNX graph, built node by node: torch 2.13's exporter fixes T at the length that it traced.

    inputs   tokens int64 [T, B]; h0, c0 float32 [L, B, H]: zeros where a text begins, h and c of the call before where it goes on
    outputs  logits float32 [T, B, V]; h, c float32 [L, B, H]

T and B are free.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, checker, helper, numpy_helper

from hvd_lm.config import ModelConfig
from hvd_lm.model.weights import Array, Weights

OPSET, IR_VERSION = 17, 8
"""Of 2022: runtimes older than the installed onnx read them too."""
LARGEST_FILE = 2**31 - 2**20
"""Bytes: protobuf ends at 2 GiB. Larger weights lie in model.onnx.data beside the graph."""


def write(weights: Weights, model: ModelConfig, path: Path) -> None:
    """The graph as one file, or two if it is too large for one. Raises OSError."""
    initializers = list(_initializers(weights, model))
    graph = helper.make_graph(list(_nodes(model)), "lstm_language_model", *_inputs_and_outputs(model), initializers)
    made = helper.make_model(graph, producer_name="hvd_lm", ir_version=IR_VERSION, opset_imports=[helper.make_opsetid("", OPSET)])
    size = sum(len(tensor.raw_data) for tensor in initializers)
    onnx.save(made, path, save_as_external_data=size > LARGEST_FILE, location=f"{path.name}.data")
    checker.check_model(path, full_check=True)


def _inputs_and_outputs(model: ModelConfig) -> tuple[list[onnx.ValueInfoProto], list[onnx.ValueInfoProto]]:
    def floats(name: str, *shape: int | str | None) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    state_LBH = (model.layers, "B", model.hidden_size)
    tokens = helper.make_tensor_value_info("tokens", TensorProto.INT64, ("T", "B"))
    return (
        [tokens, floats("h0", *state_LBH), floats("c0", *state_LBH)],
        [floats("logits", "T", "B", model.vocabulary_size), floats("h", *state_LBH), floats("c", *state_LBH)],
    )


def _initializers(weights: Weights, model: ModelConfig) -> Iterator[onnx.TensorProto]:
    arrays = {name: array for name, array in weights.items() if not name.startswith("lstm.")}
    for layer in range(model.layers):
        bias = _gates_in_onnx_order(weights[f"lstm.{layer}.bias"])
        arrays[f"W{layer}"] = _gates_in_onnx_order(weights[f"lstm.{layer}.input_kernel"])[None]
        arrays[f"R{layer}"] = _gates_in_onnx_order(weights[f"lstm.{layer}.recurrent_kernel"])[None]
        arrays[f"B{layer}"] = np.concatenate((bias, np.zeros_like(bias)))[None]
    for name, array in arrays.items():
        yield numpy_helper.from_array(array, name)
    yield numpy_helper.from_array(np.array([1], np.int64), "directions")


def _gates_in_onnx_order(array: Array) -> Array:
    """i, f, g, o along the first axis as i, o, f, g."""
    i, f, g, o = np.split(array, 4)
    return np.concatenate((i, o, f, g))


def _nodes(model: ModelConfig) -> Iterator[onnx.NodeProto]:
    def each(name: str) -> list[str]:
        return [f"{name}_{layer}" for layer in range(model.layers)]

    yield helper.make_node("Gather", ["embedding", "tokens"], ["x_0"])
    yield helper.make_node("Split", ["h0"], each("h0"), axis=0)
    yield helper.make_node("Split", ["c0"], each("c0"), axis=0)
    for layer in range(model.layers):
        yield from _layer(layer, model.hidden_size)
    yield helper.make_node("Concat", each("h"), ["h"], axis=0)
    yield helper.make_node("Concat", each("c"), ["c"], axis=0)
    yield helper.make_node("Transpose", ["embedding" if model.tie_embedding else "output_kernel"], ["kernel_HV"], perm=(1, 0))
    yield helper.make_node("MatMul", [f"x_{model.layers}", "kernel_HV"], ["products"])
    yield helper.make_node("Add", ["products", "output_bias"], ["logits"])


def _layer(layer: int, units: int) -> Sequence[onnx.NodeProto]:
    no_lengths = ""
    inputs = [f"x_{layer}", f"W{layer}", f"R{layer}", f"B{layer}", no_lengths, f"h0_{layer}", f"c0_{layer}"]
    outputs_T1BH = f"outputs_{layer}"
    return (
        helper.make_node("LSTM", inputs, [outputs_T1BH, f"h_{layer}", f"c_{layer}"], hidden_size=units),
        helper.make_node("Squeeze", [outputs_T1BH, "directions"], [f"x_{layer + 1}"]),
    )
