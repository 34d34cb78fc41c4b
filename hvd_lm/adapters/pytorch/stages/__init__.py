"""The stages of a model in PyTorch, one file each; which one computes what is declared is decided here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import nn

from hvd_lm.adapters.pytorch.model_group import ModelGroup
from hvd_lm.adapters.pytorch.products import has_avx512, uses_onednn
from hvd_lm.adapters.pytorch.stages.base import Complete, LayerState, Stage
from hvd_lm.adapters.pytorch.stages.drop import Drop
from hvd_lm.adapters.pytorch.stages.lookup import Lookup
from hvd_lm.adapters.pytorch.stages.mlstm import MultiplicativeLstm
from hvd_lm.adapters.pytorch.stages.neighbours import Arrive, Depart, Neighbour
from hvd_lm.adapters.pytorch.stages.onednn_lstm import OneDnnLstm
from hvd_lm.adapters.pytorch.stages.output import Output
from hvd_lm.adapters.pytorch.stages.split_lookup import SplitLookup
from hvd_lm.adapters.pytorch.stages.split_output import SplitOutput
from hvd_lm.adapters.pytorch.stages.torch_lstm import TorchLstm
from hvd_lm.config import ModelConfig
from hvd_lm.model import stages as declared
from hvd_lm.model.noise import keep_probability
from hvd_lm.model.split import Share

__all__ = ["Complete", "Divided", "LayerState", "Made", "Neighbour", "Output", "Stage", "make_stages"]

Weights = Mapping[str, nn.Parameter]


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
    output: Output | Depart | None = Depart(divided.above) if divided.above else None
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


ONEDNN_UNITS = 512 if has_avx512() else 1024
"""Units from which the LSTM written by hand is the faster one on a CPU. Below, nn.LSTM is: with AVX2 in 0.13 of its time at 32
units, in 0.6 at 200, in 0.8 at 512, in as much at 1024 (benchmarks/cells.py). With AVX-512 only 1024 were measured."""


def _make_lstm(_: ModelConfig, stage: declared.Stage, weights: Weights) -> Stage:
    by_hand = uses_onednn(weights["bias"]) and stage.units >= ONEDNN_UNITS
    return (OneDnnLstm if by_hand else TorchLstm)(weights, stage.units)


_MAKERS: dict[declared.Kind, Callable[[ModelConfig, declared.Stage, Weights], Stage]] = {
    "drop": lambda config, *_: Drop(keep_probability(config.dropout)),
    "lstm": _make_lstm,
    "mlstm": lambda _, stage, weights: MultiplicativeLstm(weights, stage.units),
}
