"""Going on with an earlier run: which checkpoint, does it fit, and what of the run's folder comes after it."""

from __future__ import annotations

from pathlib import Path

from hvd_lm import checkpoint as checkpoints
from hvd_lm.checkpoint import Checkpoint
from hvd_lm.config import RunConfig
from hvd_lm.errors import CheckpointError, DataError

AUTO = "auto"


def find_checkpoint(config: RunConfig) -> Checkpoint | None:
    """What ``--resume`` asks for; None if the run begins.

    Raises CheckpointError if it is missing, damaged, or of another model or optimizer.
    """
    if config.resume is None:
        return None
    source = config.out if config.resume == AUTO else Path(config.resume)
    if config.resume == AUTO and not checkpoints.exists(source):
        return None
    checkpoint = checkpoints.load(source)
    _check_model(checkpoint, config)
    return checkpoint


def continues_folder(config: RunConfig) -> bool:
    """Whether the run to go on with is the one in ``--out`` itself."""
    if config.resume is None:
        return False
    return config.resume == AUTO or Path(config.resume).resolve().is_relative_to(config.out.resolve())


def _check_model(checkpoint: Checkpoint, config: RunConfig) -> None:
    pairs = {
        name: (getattr(checkpoint.model, name), getattr(config.model, name))
        for name in ("vocabulary_size", "embedding_size", "hidden_size", "layers", "tie_embedding")
    }
    pairs["optimizer"] = (checkpoint.optimizer.optimizer, config.optimizer.optimizer)
    for name, (has, wants) in pairs.items():
        if has != wants:
            flag = name.replace("_", "-")
            raise CheckpointError(f"--resume {config.resume}: the checkpoint has --{flag} {has}, this run {wants}: make them equal")


def check_text(checkpoint: Checkpoint, fingerprint: str, config: RunConfig) -> None:
    """Raises DataError if the run read another text before: its positions would mean nothing."""
    if checkpoint.progress.text != fingerprint:
        raise DataError(
            f"--resume {config.resume}: the checkpoint was made on another text, or another cut of it into training and "
            "validation: give the same --data, or begin a new run"
        )
