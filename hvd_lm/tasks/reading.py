"""How a trained model reads texts, each of which one of the ranks reads: on ranks that have the same model and the same texts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hvd_lm import adapters
from hvd_lm.adapters.base import Adapter
from hvd_lm.adapters.ending import ending_together
from hvd_lm.checkpoint import Checkpoint
from hvd_lm.config import Framework
from hvd_lm.data.walk import STANDARD_INPUT
from hvd_lm.errors import DataError
from hvd_lm.evaluation.perplexity import model_digest
from hvd_lm.job.launcher import launched_size


def refuse_standard_input(paths: Sequence[Path], flag: str) -> None:
    """Raises DataError if it is among `paths`, which `flag` gives, and there are several ranks."""
    if STANDARD_INPUT in paths and launched_size() > 1:
        raise DataError(f"standard input does not reach the ranks of a job: give {flag} files, which every rank reads")


@contextmanager
def reading(
    framework: Framework, threads: int | None, model: Checkpoint, texts: Sequence[NDArray[np.int32]], common: Mapping[str, Any]
) -> Iterator[Adapter]:
    """An adapter that holds `model`, on ranks that all have it, the same `texts` and what is `common` (`Job.agree`). Collective."""
    adapter = adapters.adapter(framework, threads=threads)
    job = adapter.job
    with ending_together(job):
        if job.topology.size > 1:
            read = hashlib.sha256(b"".join(ids_T.tobytes() for ids_T in texts)).hexdigest()
            job.agree({"have another model": model_digest(model), "read other texts": read, **common})
        with job.trouble.noted():
            adapter.build(model.model)
            adapter.load_weights(model.weights)
        job.agree()
        yield adapter
