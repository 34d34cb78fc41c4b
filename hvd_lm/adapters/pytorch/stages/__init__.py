"""The stages of a model in PyTorch, one file each; which one computes what is declared is decided here."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from hvd_lm.adapters.assembly import Divided, Kit, Made, assemble, source_end
from hvd_lm.adapters.pytorch.products import has_avx512, uses_onednn
from hvd_lm.adapters.pytorch.stages.adaptive_softmax import AdaptiveOutput
from hvd_lm.adapters.pytorch.stages.attention import Attention
from hvd_lm.adapters.pytorch.stages.base import Complete, LayerState, Stage
from hvd_lm.adapters.pytorch.stages.drop import Drop
from hvd_lm.adapters.pytorch.stages.lookup import Lookup
from hvd_lm.adapters.pytorch.stages.mlstm import MultiplicativeLstm
from hvd_lm.adapters.pytorch.stages.neighbours import Arrive, Depart, neighbour
from hvd_lm.adapters.pytorch.stages.onednn_lstm import OneDnnLstm
from hvd_lm.adapters.pytorch.stages.output import Output
from hvd_lm.adapters.pytorch.stages.penalty import ActivationPenalty, TemporalPenalty
from hvd_lm.adapters.pytorch.stages.picked_output import PickedOutput
from hvd_lm.adapters.pytorch.stages.projected_lstm import ProjectedLstm
from hvd_lm.adapters.pytorch.stages.split_lookup import SplitLookup
from hvd_lm.adapters.pytorch.stages.split_output import SplitOutput
from hvd_lm.adapters.pytorch.stages.torch_lstm import TorchLstm
from hvd_lm.config import ModelConfig
from hvd_lm.model import stages as declared
from hvd_lm.model.noise import keep_probability

__all__ = ["Complete", "Depart", "LayerState", "Lookup", "Output", "Stage", "make_stages", "neighbour"]

Weights = Mapping[str, nn.Parameter]


def make_stages(config: ModelConfig, weights: Weights, divided: Divided) -> Made[Lookup, Stage, Output | Depart]:
    """`weights`: this rank's rows, by their canonical names."""
    return assemble(config, weights, divided, _KIT)


ONEDNN_UNITS = 512 if has_avx512() else 1024
"""Units from which the LSTM written by hand is the faster one on a CPU. Below, nn.LSTM is: with AVX2 in 0.13 of its time at 32
units, in 0.6 at 200, in 0.8 at 512, in as much at 1024 (benchmarks/cells.py). With AVX-512 only 1024 were measured."""


def _make_lstm(_: ModelConfig, stage: declared.Stage, weights: Weights) -> Stage:
    by_hand = uses_onednn(weights["bias"]) and stage.units >= ONEDNN_UNITS
    return (OneDnnLstm if by_hand else TorchLstm)(weights, stage.units)


_MAKERS: dict[declared.Kind, Callable[[ModelConfig, declared.Stage, Weights], Stage]] = {
    **dict.fromkeys(declared.DROPS, lambda _, stage, __: Drop(keep_probability(stage.rate))),
    "activation_penalty": lambda _, stage, __: ActivationPenalty(stage.rate),
    "temporal_penalty": lambda _, stage, __: TemporalPenalty(stage.rate),
    "lstm": _make_lstm,
    "mlstm": lambda _, stage, weights: MultiplicativeLstm(weights, stage.units),
    "attention": lambda config, _, weights: Attention(weights, source_end(config)),
    "projected_lstm": lambda _, stage, weights: ProjectedLstm(weights, stage.units),
}

_KIT: Kit[Lookup, Stage, Output | Depart] = Kit(
    lookup=Lookup,
    split_lookup=SplitLookup,
    output=Output,
    picked_output=PickedOutput,
    split_output=SplitOutput,
    adaptive_output=AdaptiveOutput,
    arrive=Arrive,
    depart=lambda above, _: Depart(above),
    others=_MAKERS,
)
