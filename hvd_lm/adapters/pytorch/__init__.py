"""The PyTorch adapter."""

from hvd_lm.job.threads import brief_spinning

with brief_spinning():
    import torch  # noqa: F401 - before anything else of it is
