"""The stages of a model in PyTorch, one file each; which one computes what is declared is decided here."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from hvd_lm.adapters.pytorch.products import uses_onednn
from hvd_lm.adapters.pytorch.stages.base import Complete, LayerState, Stage
from hvd_lm.adapters.pytorch.stages.drop import Drop
from hvd_lm.adapters.pytorch.stages.lookup import Lookup
from hvd_lm.adapters.pytorch.stages.mlstm import MultiplicativeLstm
from hvd_lm.adapters.pytorch.stages.onednn_lstm import OneDnnLstm
from hvd_lm.adapters.pytorch.stages.output import Output
from hvd_lm.adapters.pytorch.stages.torch_lstm import TorchLstm
from hvd_lm.config import ModelConfig
from hvd_lm.model import stages as declared
from hvd_lm.model.noise import keep_probability

__all__ = ["Complete", "LayerState", "Output", "Stage", "make_stages"]

Weights = Mapping[str, nn.Parameter]


def make_stages(config: ModelConfig, weights: Weights) -> tuple[list[Stage], Output]:
    """The stages of the model from below, and its output; `weights` by their canonical names."""
    *body, output = declared.stages(config)
    made = []
    for stage in body:
        of_stage = {role: weights[parameter.name] for role, parameter in stage.parameters.items()}
        made.append(_MAKERS[stage.kind](config, stage, of_stage))
    return made, Output(*(weights[output.parameters[role].name] for role in ("kernel", "bias")))


def _make_lstm(_: ModelConfig, stage: declared.Stage, weights: Weights) -> Stage:
    return (OneDnnLstm if uses_onednn(weights["bias"]) else TorchLstm)(weights, stage.units)


_MAKERS: dict[declared.Kind, Callable[[ModelConfig, declared.Stage, Weights], Stage]] = {
    "lookup": lambda _, __, weights: Lookup(weights["table"]),
    "drop": lambda config, *_: Drop(keep_probability(config.dropout)),
    "lstm": _make_lstm,
    "mlstm": lambda _, stage, weights: MultiplicativeLstm(weights, stage.units),
}
