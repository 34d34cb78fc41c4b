"""``hvd-lm export``: the weights of a checkpoint for plain PyTorch, Keras, ONNX or NumPy; none of them needs hvd_lm to load.

    <out>/
        model.pt | model.keras | model.onnx | model.safetensors
        tokenizer.json    HF tokenizers
        model.json        sizes of the model, and which token ids have a meaning of their own

The folder appears when it is complete; one that was there, empty, is complete when it has its model.json. A text begins with the
token `line_break_id` and a zero state.
"""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, cast

from safetensors.numpy import save_file

from hvd_lm import checkpoint as checkpoints
from hvd_lm.checkpoint import Checkpoint
from hvd_lm.checkpoint.files import new_folder
from hvd_lm.config import ModelConfig
from hvd_lm.errors import ConfigError, FrameworkError
from hvd_lm.model.weights import Weights
from hvd_lm.paths import make_paths
from hvd_lm.plain_values import to_dict

ExportFormat = Literal["torch", "keras", "onnx", "safetensors"]


@dataclass(frozen=True)
class ExportConfig:
    """Give the weights of a checkpoint to plain PyTorch, Keras, ONNX or NumPy."""

    checkpoint: Path
    """Folder of a training run (its newest checkpoint), or of one checkpoint."""
    format: ExportFormat
    """torch: a state_dict for nn.Embedding, nn.LSTM, nn.Linear. keras: a .keras model. onnx: a graph with the LSTM state as
    input and output. safetensors: the canonical weights, of any model; the others hold LSTM cells without a projection and no
    adaptive softmax, torch in layers that are equally wide."""
    out: Path
    """Folder to make: model.* with the weights, tokenizer.json, model.json (sizes). It appears when it is complete."""

    def __post_init__(self) -> None:
        make_paths(self, "checkpoint", "out")


class Writer(Protocol):
    """Writes the weights of a model into the file `path`. Raises OSError."""

    def __call__(self, weights: Weights, model: ModelConfig, path: Path) -> None: ...


@dataclass(frozen=True)
class _Format:
    file: str
    module: str
    """Holds the format's `write`; imported only when asked for."""
    extra: str
    """Of setup.py: installs what the module imports."""
    any_widths: bool = True
    """Whether layers may differ in width."""

    def holds(self, model: ModelConfig) -> bool:
        """Whether the format has layers for `model`: of cells all of them know the LSTM, of outputs one product."""
        return not _unusual(model) and (self.any_widths or len(set(model.units)) == 1)


def _unusual(model: ModelConfig) -> str:
    """What safetensors alone holds; empty if there is no such thing in the model."""
    if model.cell != "lstm":
        return f"{model.cell} cells"
    if model.projection_size is not None:
        return "LSTM cells with a projection"
    return "an adaptive softmax" if model.softmax == "adaptive" else ""


_HEADER = "model.json"

_FORMATS: dict[ExportFormat, _Format] = {
    "torch": _Format("model.pt", "hvd_lm.adapters.export.pytorch", "torch", any_widths=False),
    "keras": _Format("model.keras", "hvd_lm.adapters.export.keras", "tensorflow"),
    "onnx": _Format("model.onnx", "hvd_lm.adapters.export.onnx", "onnx"),
}


def export(config: ExportConfig) -> Path:
    """Write the folder ``config.out`` and return it.

    Raises CheckpointError, ConfigError or FrameworkError, each with what to do; then nothing is left behind.
    """
    checkpoint = checkpoints.language_model(checkpoints.load_model(config.checkpoint), config.checkpoint)
    _require_place(config.format, checkpoint.model)
    file, write = _writer(config.format)
    with new_folder(config.out, _HEADER) as staging:
        write(checkpoint.weights, checkpoint.model, staging / file)
        checkpoint.tokenizer.save(staging / "tokenizer.json")
        text = json.dumps(_description(checkpoint, config.format), indent=2, ensure_ascii=False)
        (staging / _HEADER).write_text(text + "\n", encoding="utf-8")
    return config.out


def _require_place(format: ExportFormat, model: ModelConfig) -> None:
    """Raises ConfigError if `format` is not known, or has no layers for `model`."""
    if format == "safetensors":
        return
    if format not in _FORMATS:
        raise ConfigError(f"unknown format {format!r}: choose one of {', '.join(_FORMATS)}, safetensors")
    if not _FORMATS[format].holds(model):
        what = f"layers of {', '.join(map(str, model.units))} units"
        what = _unusual(model) or what
        able = [name for name, known in _FORMATS.items() if known.holds(model)]
        raise ConfigError(f"--format {format} cannot hold {what}: use --format {' or '.join([*able, 'safetensors'])}")


def _writer(format: ExportFormat) -> tuple[str, Writer]:
    """The file that a format is written to, and what writes it. Raises FrameworkError if that does not load."""
    if format == "safetensors":
        return "model.safetensors", write_safetensors
    known = _FORMATS[format]
    try:
        return known.file, cast(Writer, importlib.import_module(known.module).write)
    except ImportError as error:
        reason = " ".join(str(error).split())
        raise FrameworkError(f"--format {format} does not load ({reason}): pip install 'hvd_lm[{known.extra}]'") from error


def write_safetensors(weights: Weights, model: ModelConfig, path: Path) -> None:
    """The canonical weights, with every size of the model in the metadata, as JSON. Raises SafetensorError."""
    save_file(weights, path, metadata={name: json.dumps(value) for name, value in to_dict(model).items()})


def _description(checkpoint: Checkpoint, format: ExportFormat) -> dict[str, Any]:
    tokenizer = checkpoint.tokenizer
    return {
        "format": format,
        "model": to_dict(checkpoint.model),
        "tokenizer": {
            "kind": tokenizer.kind,
            "line_break_id": tokenizer.end_of_line_id,
            "unknown_id": tokenizer.unknown_id,
        },
        "step": checkpoint.step,
    }
