"""The test split, read once, when a run is done: by the best weights that it has had."""

from __future__ import annotations

from pathlib import Path

from hvd_lm import checkpoint as checkpoints
from hvd_lm.adapters.base import Adapter
from hvd_lm.checkpoint.format import best_of, step_of
from hvd_lm.config import DataConfig
from hvd_lm.evaluation.figures import Evaluation
from hvd_lm.training.dataset import Dataset
from hvd_lm.training.metrics import Metrics
from hvd_lm.training.snapshot import enter


def tested(adapter: Adapter, dataset: Dataset, data: DataConfig, out: Path, step: int, metrics: Metrics) -> Evaluation | None:
    """What the best checkpoint in `out` makes of the test split; without validations, the weights after `step`. Collective.

    None where there is no test split. Afterwards the adapter holds those weights. Raises CheckpointError or DataError, on all ranks
    alike.
    """
    if not dataset.has("test"):
        return None
    job, best = adapter.job, None
    # The adapter holds the plain weights, which are not what is judged.
    averages = adapter.update_config is not None and adapter.update_config.optimizer == "asgd"
    with job.trouble.noted():
        if job.topology.is_writer and (folder := best_of(out)) and (averages or step_of(folder) != step):
            best = checkpoints.mapped(folder)
    job.agree()
    judged, is_read = job.broadcast((best.step if best else step, best is not None))
    if is_read:
        enter(adapter, best, seed=0)
    test = dataset.judged("test", adapter, data)
    job.agree()
    metrics.say(f"test loss {test.loss:.4f}  perplexity {test.perplexity:.2f}, of the weights after step {judged}")
    return test
