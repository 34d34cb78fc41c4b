"""The test split, read once, when a run is done: by the best weights that it has had."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

from hvd_lm import checkpoint as checkpoints
from hvd_lm.adapters.base import Adapter
from hvd_lm.checkpoint.format import best_of, step_of
from hvd_lm.config import DataConfig
from hvd_lm.evaluation.figures import Evaluation
from hvd_lm.training.averages import Averages
from hvd_lm.training.dataset import Dataset
from hvd_lm.training.metrics import Metrics
from hvd_lm.training.snapshot import enter


def tested(
    adapter: Adapter, dataset: Dataset, data: DataConfig, out: Path, step: int, averages: Averages, metrics: Metrics
) -> Evaluation | None:
    """What the best checkpoint in `out` makes of the test split; if none is there, the weights after `step`, or their averages.

    None where there is no test split. Afterwards the adapter may hold other weights. Raises CheckpointError or DataError, on all
    ranks alike. Collective.
    """
    if not dataset.has("test"):
        return None
    job, best = adapter.job, None
    with job.trouble.noted():
        if job.topology.is_writer and (folder := best_of(out)) and (averages.are_there or step_of(folder) != step):
            best = checkpoints.mapped(folder)
    job.agree()
    judged, is_read = job.broadcast((best.step if best else step, best is not None))
    if is_read:
        enter(adapter, best, seed=0)
    # Where averages have begun, the adapter holds the plain weights, which are not what is judged.
    with nullcontext() if is_read else averages.judged():
        test = dataset.judged("test", adapter, data)
    job.agree()
    metrics.say(f"test loss {test.loss:.4f}  perplexity {test.perplexity:.2f}, of the weights after step {judged}")
    return test
