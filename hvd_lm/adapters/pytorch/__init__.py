"""The PyTorch adapter."""

from hvd_lm.job.threads import sleeping_when_idle

with sleeping_when_idle():
    import torch  # noqa: F401 - before anything else of it is
