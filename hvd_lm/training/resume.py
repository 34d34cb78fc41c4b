"""How a run begins: from which checkpoint, and whether that fits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from hvd_lm import checkpoint as checkpoints
from hvd_lm.checkpoint import Checkpoint
from hvd_lm.config import ModelConfig, OptimizerConfig
from hvd_lm.data.tokenizer import Tokenizer
from hvd_lm.errors import CheckpointError, DataError
from hvd_lm.model.stages import OF_CLASSES, parameters
from hvd_lm.model.weights import Rows
from hvd_lm.training.folder import prepare_folder

AUTO = "auto"
_SIZES = ("vocabulary_size", "embedding_size", "hidden_size", "layers", "cell", "projection_size")
_SAME = ("tie_embedding", "weight_normalization", "classes", "source_end", "source_reversed", "source_attention")


def begin(out: Path, resume: str | None, model: ModelConfig, optimizer: OptimizerConfig, fingerprint: str) -> Checkpoint | None:
    """Make the folder `out` ready, and find what ``--resume`` asks for; None if the run begins anew.

    Raises CheckpointError if that is missing, damaged, or of another model or optimizer; DataError if it is of another text than
    `fingerprint` stands for; ConfigError if ``--out`` cannot be written.
    """
    earlier = find_checkpoint(resume, out)
    goes_on_after = None
    if earlier:
        _check_fit(earlier, model, optimizer, fingerprint, resume)
        if resume == AUTO or Path(resume or "").resolve().is_relative_to(out.resolve()):
            goes_on_after = earlier.step
    prepare_folder(out, goes_on_after=goes_on_after)
    return earlier


def find_checkpoint(resume: str | None, out: Path) -> Checkpoint | None:
    """What ``--resume`` asks for; None if the run begins. Raises CheckpointError if it is missing or damaged."""
    if resume is None:
        return None
    source = out if resume == AUTO else Path(resume)
    if resume == AUTO and not checkpoints.exists(source):
        return None
    return checkpoints.mapped(source)


def initial_weights(of: Path | None, model: ModelConfig, tokenizer: Tokenizer) -> Mapping[str, Rows]:
    """The weights that ``--initial-weights`` names, of those that `model` has; read when they are looked at. None without it.

    What judges classes is the model's own, and begins anew. Raises CheckpointError if it is missing, damaged, or of another model;
    DataError if it has another tokenizer.
    """
    if of is None:
        return {}
    found = checkpoints.mapped(of)
    if found.tokenizer.to_json() != tokenizer.to_json():
        raise DataError(
            f"--initial-weights {of} has another tokenizer than the text: prepare the text with --tokenizer-file "
            f"{of / 'tokenizer.json'}"
        )
    wanted = {name: parameter for name, parameter in parameters(model).items() if not name.startswith(OF_CLASSES)}
    for name, parameter in wanted.items():
        has = found.weights[name].shape if name in found.weights else None
        if has != parameter.shape:
            shape = f"has shape {list(has)}" if has else "is absent"
            raise CheckpointError(
                f"--initial-weights {of}: {name} {shape} there, this run wants {list(parameter.shape)}: make their sizes equal"
            )
    return {name: found.weights[name] for name in wanted}


def _check_fit(checkpoint: Checkpoint, model: ModelConfig, optimizer: OptimizerConfig, text: str, resume: str | None) -> None:
    """Of the model, and of the text: positions in another one would mean nothing. Sizes may differ because the text does."""
    pairs = {name: (getattr(checkpoint.model, name), getattr(model, name)) for name in (*_SIZES, *_SAME)}
    # A sampled softmax has the weights of a full one.
    softmaxes = checkpoint.model.softmax, model.softmax
    if "adaptive" in softmaxes:
        names = ("adaptive_cutoffs", "adaptive_division") if softmaxes[0] == softmaxes[1] else ("softmax",)
        pairs |= {name: (getattr(checkpoint.model, name), getattr(model, name)) for name in names}
    pairs["optimizer"] = (checkpoint.optimizer.optimizer, optimizer.optimizer)
    differing = [
        f"the checkpoint has --{name.replace('_', '-')} {has}, this run {wants}"
        for name, (has, wants) in pairs.items()
        if has != wants
    ]
    if checkpoint.progress.text != text:
        also = f" ({', '.join(differing)})" if differing else ""
        raise DataError(
            f"--resume {resume}: the checkpoint was made on another text, or another cut of it into training and "
            f"validation{also}: give the same --data (with --validation-cut tokens if an older hvd_lm began the run), or begin a "
            "new run"
        )
    if differing:
        raise CheckpointError(f"--resume {resume}: {', '.join(differing)}: make them equal")
