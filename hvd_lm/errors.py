"""The errors a user can cause. Each message is one line and says what to do; the command line prints it on one rank."""

from __future__ import annotations


class HvdLmError(Exception):
    """Base of the family: ends the job with `exit_code` and one line instead of a traceback."""

    exit_code = 2


class ConfigError(HvdLmError, ValueError):
    """A setting, or a combination of settings, that cannot work."""


class DataError(HvdLmError):
    """A text that is missing, unreadable, empty or too short for what was asked."""


class FrameworkError(HvdLmError):
    """A framework, or Horovod for it, is not installed or does not load."""


class CheckpointError(HvdLmError):
    """A checkpoint that is missing, damaged or does not fit the model."""


class TrainingError(HvdLmError):
    """Training cannot go on: the loss or the gradients are not finite."""

    exit_code = 3


class LostWorkerError(HvdLmError):
    """Another rank went away, or a collective operation failed."""

    exit_code = 4
