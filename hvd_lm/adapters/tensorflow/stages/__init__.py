"""The stages of a model in TensorFlow, one file each; which one computes what is declared is decided here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from hvd_lm.adapters.tensorflow.model_group import ModelGroup
from hvd_lm.adapters.tensorflow.quiet import native_stderr_closed
from hvd_lm.adapters.tensorflow.stages.base import Stage
from hvd_lm.adapters.tensorflow.stages.cudnn_lstm import CudnnLstm
from hvd_lm.adapters.tensorflow.stages.drop import Drop
from hvd_lm.adapters.tensorflow.stages.lookup import Lookup
from hvd_lm.adapters.tensorflow.stages.lstm import Lstm
from hvd_lm.adapters.tensorflow.stages.mlstm import MultiplicativeLstm
from hvd_lm.adapters.tensorflow.stages.neighbours import Arrive, Depart, Neighbour
from hvd_lm.adapters.tensorflow.stages.output import Output
from hvd_lm.adapters.tensorflow.stages.split_lookup import SplitLookup
from hvd_lm.adapters.tensorflow.stages.split_output import SplitOutput
from hvd_lm.adapters.tensorflow.weight import Weight
from hvd_lm.config import ModelConfig
from hvd_lm.model import stages as declared
from hvd_lm.model.noise import keep_probability
from hvd_lm.model.split import Share

with native_stderr_closed():
    import tensorflow as tf

__all__ = ["Divided", "Made", "Neighbour", "make_stages"]

Weights = Mapping[str, Weight]


class Made(NamedTuple):
    """The stages of a rank, from below."""

    lookup: Lookup | None
    """The first of `stages`, if this rank has it."""
    stages: list[Stage]
    output: Output | Depart


class Divided(NamedTuple):
    """What stages need to know of other ranks."""

    places: range
    """Of the declared stages, those of this rank."""
    shares: Mapping[str, Share]
    group: ModelGroup | None = None
    """Divides what is split by rows."""
    below: Neighbour | None = None
    above: Neighbour | None = None


def make_stages(config: ModelConfig, weights: Weights, divided: Divided) -> Made:
    """`weights`: this rank's rows, by their canonical names."""
    made: list[Stage] = []
    lookup: Lookup | None = None
    output: Output | Depart | None = None
    for place, stage in enumerate(declared.stages(config)):
        if place not in divided.places:
            continue
        if divided.below and not made and stage.kind != "lookup":
            made.append(Arrive(divided.below, stage.input_size))
        of_stage = {role: weights[parameter.name] for role, parameter in stage.parameters.items()}
        if stage.kind == "lookup":
            lookup = _make_lookup(stage, of_stage, divided)
            made.append(lookup)
        elif stage.kind == "output":
            output = _make_output(stage, of_stage, divided)
        else:
            made.append(_MAKERS[stage.kind](config, stage, of_stage))
        if divided.above:
            output = Depart(divided.above, stage.output_size)
    assert output is not None
    return Made(lookup, made, output)


def _make_lookup(stage: declared.Stage, weights: Weights, divided: Divided) -> Lookup:
    if divided.group:
        return SplitLookup(weights["table"], divided.shares[stage.parameters["table"].name].parts, divided.group)
    return Lookup(weights["table"])


def _make_output(stage: declared.Stage, weights: Weights, divided: Divided) -> Output:
    if divided.group:
        parts = divided.shares[stage.parameters["kernel"].name].parts
        return SplitOutput(weights["kernel"], weights["bias"], parts, divided.group)
    return Output(weights["kernel"], weights["bias"])


def _make_lstm(_: ModelConfig, __: declared.Stage, weights: Weights) -> Stage:
    return CudnnLstm(weights) if tf.config.get_visible_devices("GPU") else Lstm(weights)


_MAKERS: dict[declared.Kind, Callable[[ModelConfig, declared.Stage, Weights], Stage]] = {
    "drop": lambda config, stage, _: Drop(stage.output_size, keep_probability(config.dropout)),
    "lstm": _make_lstm,
    "mlstm": lambda _, stage, weights: MultiplicativeLstm(weights, stage.input_size, stage.units),
}
