"""How a run begins in its folder: from which checkpoint, does it fit, and what an earlier run left there."""

from __future__ import annotations

import os
from pathlib import Path

from hvd_lm import checkpoint as checkpoints
from hvd_lm.checkpoint import Checkpoint
from hvd_lm.config import ModelConfig, OptimizerConfig, RunConfig
from hvd_lm.errors import CheckpointError, ConfigError, DataError

AUTO = "auto"
_RUN_FILES = ("config.yaml", "metrics.jsonl", "tensorboard", "tokenizer.json", checkpoints.FOLDER)


def begin(config: RunConfig, fingerprint: str) -> Checkpoint | None:
    """Make ``--out`` ready, and find what ``--resume`` asks for; None if the run begins anew.

    Raises CheckpointError if that is missing, damaged, or of another model or optimizer; DataError if it is of another text than
    `fingerprint` stands for; ConfigError if ``--out`` cannot be written.
    """
    earlier = find_checkpoint(config.resume, config.out)
    goes_on_after = None
    if earlier:
        _check_model(earlier, config.model, config.optimizer, config.resume)
        _check_text(earlier, fingerprint, config.resume)
        if config.resume == AUTO or Path(config.resume or "").resolve().is_relative_to(config.out.resolve()):
            goes_on_after = earlier.step
    prepare_folder(config.out, goes_on_after=goes_on_after)
    return earlier


def find_checkpoint(resume: str | None, out: Path) -> Checkpoint | None:
    """What ``--resume`` asks for; None if the run begins. Raises CheckpointError if it is missing or damaged."""
    if resume is None:
        return None
    source = out if resume == AUTO else Path(resume)
    if resume == AUTO and not checkpoints.exists(source):
        return None
    return checkpoints.load(source)


def _check_model(checkpoint: Checkpoint, model: ModelConfig, optimizer: OptimizerConfig, resume: str | None) -> None:
    pairs = {
        name: (getattr(checkpoint.model, name), getattr(model, name))
        for name in ("vocabulary_size", "embedding_size", "hidden_size", "layers", "cell", "tie_embedding")
    }
    pairs["optimizer"] = (checkpoint.optimizer.optimizer, optimizer.optimizer)
    for name, (has, wants) in pairs.items():
        if has != wants:
            flag = name.replace("_", "-")
            raise CheckpointError(f"--resume {resume}: the checkpoint has --{flag} {has}, this run {wants}: make them equal")


def _check_text(checkpoint: Checkpoint, fingerprint: str, resume: str | None) -> None:
    """The positions of another text would mean nothing."""
    if checkpoint.progress.text != fingerprint:
        raise DataError(
            f"--resume {resume}: the checkpoint was made on another text, or another cut of it into training and "
            "validation: give the same --data (with --validation-cut tokens if an older hvd_lm began the run), or begin a new run"
        )


def prepare_folder(out: Path, *, goes_on_after: int | None = None) -> None:
    """Make `out`, and move what an earlier run left in it aside, so that nothing is lost.

    With `goes_on_after` that run goes on, and only its checkpoints after this step are moved.
    Raises ConfigError if it cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
        aside = out / f"earlier-{1 + sum(1 for _ in out.glob('earlier-*'))}"
        if goes_on_after is not None:
            checkpoints.discard_after(goes_on_after, out, aside)
        elif earlier := [path for name in _RUN_FILES if (path := out / name).exists()]:
            aside.mkdir()
            for path in earlier:
                path.rename(aside / path.name)
    except OSError as error:
        raise ConfigError(f"cannot write to --out {out}: {error.strerror or error}") from error
