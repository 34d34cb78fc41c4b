"""The stages of a model in TensorFlow, one file each; which one computes what is declared is decided here."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from hvd_lm.adapters.tensorflow.model_group import ModelGroup
from hvd_lm.adapters.tensorflow.quiet import native_stderr_closed
from hvd_lm.adapters.tensorflow.stages.base import Stage
from hvd_lm.adapters.tensorflow.stages.cudnn_lstm import CudnnLstm
from hvd_lm.adapters.tensorflow.stages.drop import Drop
from hvd_lm.adapters.tensorflow.stages.lookup import Lookup
from hvd_lm.adapters.tensorflow.stages.lstm import Lstm
from hvd_lm.adapters.tensorflow.stages.mlstm import MultiplicativeLstm
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

Weights = Mapping[str, Weight]


def make_stages(
    config: ModelConfig, weights: Weights, shares: Mapping[str, Share], group: ModelGroup | None
) -> tuple[Lookup, list[Stage], Output]:
    """The lowest stage of the model, those between, and its output; `weights`, this rank's rows, by their canonical names.

    A `group` divides what is split by rows.
    """
    lookup, *body, output = declared.stages(config)
    made = []
    for stage in body:
        of_stage = {role: weights[parameter.name] for role, parameter in stage.parameters.items()}
        made.append(_MAKERS[stage.kind](config, stage, of_stage))
    table, kernel, bias = (of.parameters[role].name for of, role in ((lookup, "table"), (output, "kernel"), (output, "bias")))
    if group:
        return (
            SplitLookup(weights[table], shares[table].parts, group),
            made,
            SplitOutput(weights[kernel], weights[bias], shares[kernel].parts, group),
        )
    return Lookup(weights[table]), made, Output(weights[kernel], weights[bias])


def _make_lstm(_: ModelConfig, __: declared.Stage, weights: Weights) -> Stage:
    return CudnnLstm(weights) if tf.config.get_visible_devices("GPU") else Lstm(weights)


_MAKERS: dict[declared.Kind, Callable[[ModelConfig, declared.Stage, Weights], Stage]] = {
    "drop": lambda config, stage, _: Drop(stage.output_size, keep_probability(config.dropout)),
    "lstm": _make_lstm,
    "mlstm": lambda _, stage, weights: MultiplicativeLstm(weights, stage.input_size, stage.units),
}
