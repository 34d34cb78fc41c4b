"""Checkpoints: what they hold and how they are read (format), and how they are written (writer)."""

from hvd_lm.checkpoint.format import (
    BEST,
    FOLDER,
    FORMAT_VERSION,
    Checkpoint,
    Progress,
    discard_after,
    exists,
    language_model,
    load,
    load_model,
    mapped,
    newest_step,
)
from hvd_lm.checkpoint.writer import CheckpointWriter, save

__all__ = [
    "BEST",
    "FOLDER",
    "FORMAT_VERSION",
    "Checkpoint",
    "CheckpointWriter",
    "Progress",
    "discard_after",
    "exists",
    "language_model",
    "load",
    "load_model",
    "mapped",
    "newest_step",
    "save",
]
