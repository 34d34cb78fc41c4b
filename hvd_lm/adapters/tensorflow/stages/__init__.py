"""The stages of a model in TensorFlow, one file each; which one computes what is declared is decided here."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from hvd_lm.adapters.assembly import Divided, Kit, Made, assemble, source_end
from hvd_lm.adapters.tensorflow.products import on_gpu
from hvd_lm.adapters.tensorflow.stages.adaptive_softmax import AdaptiveOutput
from hvd_lm.adapters.tensorflow.stages.attention import Attention
from hvd_lm.adapters.tensorflow.stages.base import Stage
from hvd_lm.adapters.tensorflow.stages.cudnn_lstm import CudnnLstm
from hvd_lm.adapters.tensorflow.stages.drop import Drop
from hvd_lm.adapters.tensorflow.stages.lookup import Lookup
from hvd_lm.adapters.tensorflow.stages.lstm import Lstm
from hvd_lm.adapters.tensorflow.stages.mlstm import MultiplicativeLstm
from hvd_lm.adapters.tensorflow.stages.neighbours import Arrive, Depart, neighbour
from hvd_lm.adapters.tensorflow.stages.output import Output
from hvd_lm.adapters.tensorflow.stages.penalty import ActivationPenalty, TemporalPenalty
from hvd_lm.adapters.tensorflow.stages.picked_output import PickedOutput
from hvd_lm.adapters.tensorflow.stages.projected_lstm import ProjectedLstm
from hvd_lm.adapters.tensorflow.stages.split_lookup import SplitLookup
from hvd_lm.adapters.tensorflow.stages.split_output import SplitOutput
from hvd_lm.adapters.tensorflow.weight import Weight
from hvd_lm.adapters.tensorflow.weight_drop import reading_what_is_stored
from hvd_lm.config import ModelConfig
from hvd_lm.model import stages as declared
from hvd_lm.model.noise import keep_probability

__all__ = ["make_stages", "neighbour"]

Weights = Mapping[str, Weight]


def make_stages(config: ModelConfig, weights: Weights, divided: Divided) -> Made[Lookup, Stage, Output | Depart]:
    """`weights`: this rank's rows, by their canonical names."""
    return assemble(config, weights, divided, _KIT)


def _make_lstm(_: ModelConfig, __: declared.Stage, weights: Weights) -> Stage:
    return CudnnLstm(weights) if on_gpu() else Lstm(weights)


_MAKERS: dict[declared.Kind, Callable[[ModelConfig, declared.Stage, Weights], Stage]] = {
    "drop": lambda _, stage, __: Drop(stage.output_size, keep_probability(stage.rate)),
    "drop_words": lambda _, stage, __: Drop(1, keep_probability(stage.rate)),
    "activation_penalty": lambda _, stage, __: ActivationPenalty(stage.output_size, stage.rate),
    "temporal_penalty": lambda _, stage, __: TemporalPenalty(stage.output_size, stage.rate),
    "lstm": _make_lstm,
    "mlstm": lambda _, stage, weights: MultiplicativeLstm(weights, stage.input_size, stage.units),
    "attention": lambda config, stage, weights: Attention(weights, stage.output_size, source_end(config)),
    "projected_lstm": lambda _, stage, weights: ProjectedLstm(weights, stage.input_size, stage.units),
}

_KIT: Kit[Lookup, Stage, Output | Depart] = Kit(
    lookup=Lookup,
    split_lookup=SplitLookup,
    output=Output,
    picked_output=PickedOutput,
    split_output=SplitOutput,
    adaptive_output=AdaptiveOutput,
    arrive=Arrive,
    depart=Depart,
    others={kind: reading_what_is_stored(make) for kind, make in _MAKERS.items()},
)
