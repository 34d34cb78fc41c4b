"""The stages of a model in TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping

from hvd_lm.adapters.tensorflow.quiet import native_stderr_closed
from hvd_lm.adapters.tensorflow.stages.base import Stage
from hvd_lm.adapters.tensorflow.stages.cudnn_lstm import CudnnLstm
from hvd_lm.adapters.tensorflow.stages.drop import Drop
from hvd_lm.adapters.tensorflow.stages.lookup import Lookup
from hvd_lm.adapters.tensorflow.stages.lstm import Lstm
from hvd_lm.adapters.tensorflow.stages.mlstm import MultiplicativeLstm
from hvd_lm.adapters.tensorflow.stages.output import Output
from hvd_lm.adapters.tensorflow.weight import Weight
from hvd_lm.config import ModelConfig
from hvd_lm.model import stages as declared
from hvd_lm.model.noise import keep_probability

with native_stderr_closed():
    import tensorflow as tf


def make_stages(model: ModelConfig, weights: Mapping[str, Weight]) -> tuple[list[Stage], Output]:
    """Those below the output, from below, and the output; each the fastest one for the device, on `weights` by canonical name."""
    by_roles = [{role: weights[parameter.name] for role, parameter in stage.parameters.items()} for stage in declared.stages(model)]
    *below, output = zip(declared.stages(model), by_roles, strict=True)
    return [_make(stage, model, its) for stage, its in below], Output(output[1]["kernel"], output[1]["bias"])


def _make(stage: declared.Stage, model: ModelConfig, weights: Mapping[str, Weight]) -> Stage:
    match stage.kind:
        case "lookup":
            return Lookup(weights["table"])
        case "drop":
            return Drop(stage.output_size, keep_probability(model.dropout))
        case "lstm":
            return CudnnLstm(weights) if tf.config.get_visible_devices("GPU") else Lstm(weights)
        case "mlstm":
            return MultiplicativeLstm(weights, stage.input_size, stage.units)
        case _:
            raise NotImplementedError(f"no stage {stage.kind} in TensorFlow")
