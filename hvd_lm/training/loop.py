"""`train`: the story of a run, from its texts to its last checkpoint. Knows no framework."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from hvd_lm.adapters import adapter as make_adapter
from hvd_lm.adapters.base import Adapter
from hvd_lm.adapters.job import lost_workers_reported
from hvd_lm.checkpoint import CheckpointWriter
from hvd_lm.config import RunConfig, with_vocabulary_size, write_yaml
from hvd_lm.data.texts import read_texts
from hvd_lm.errors import ConfigError, DataError
from hvd_lm.evaluation.figures import Evaluation
from hvd_lm.job import launcher
from hvd_lm.training.leg import Leg, Outlets
from hvd_lm.training.metrics import MetricsWriter
from hvd_lm.training.resume import begin
from hvd_lm.training.snapshot import enter


@dataclass(frozen=True)
class TrainingResult:
    """How a run ended; the same on all ranks."""

    steps: int
    loss: float
    """Nats per token over the last window."""
    validation: Evaluation | None
    skipped_steps: int
    out: Path


def train(config: RunConfig) -> TrainingResult:
    """Train as `config` says, alone or as one rank of a job; rank 0 writes into `config.out`. Collective.

    Raises a HvdLmError (ConfigError, DataError, CheckpointError, FrameworkError, TrainingError, LostWorkerError) that says
    what to do.
    """
    # Everything that can be refused is refused before Horovod starts, on all ranks alike.
    data_ranks = max(1, launcher.launched_size() // config.topology.model_parallel)
    texts = read_texts(config.data, config.model.vocabulary_size, data_ranks)
    config = with_vocabulary_size(config, texts.tokenizer.vocabulary_size)
    earlier = begin(config, texts.fingerprint) if launcher.launched_rank() == 0 else None

    adapter = make_adapter(
        config.framework, config.communication, config.topology, config.threads, deterministic=config.deterministic
    )
    with lost_workers_reported(adapter.job), ExitStack() as outlets:
        _check_job(adapter, texts.fingerprint)
        adapter.build(config.model, config.optimizer)
        step, progress = enter(adapter, earlier, config.seed)
        del earlier  # as large as weights and moments together
        leg = Leg(config, texts, adapter, step, progress)
        if adapter.job.topology.is_writer:
            write_yaml(config, config.out / "config.yaml")
            texts.tokenizer.save(config.out / "tokenizer.json")
            metrics = outlets.enter_context(MetricsWriter(config.out, leg.total_steps, goes_on_after=step))
            leg.outlets = Outlets(metrics, outlets.enter_context(CheckpointWriter(config.out, config.keep_checkpoints)))
        leg.outlets.metrics.say(f"{adapter.job.headline()}\n{leg.headline()}")
        if leg.step >= leg.total_steps:
            leg.outlets.metrics.say(f"the run has its {leg.total_steps} steps already: raise --steps or --epochs to go on")
        loss, validation = leg.run()
        if leg.skipped_steps:
            say = f"{leg.skipped_steps} of {leg.step} steps were skipped because a gradient overflowed in fp16"
            leg.outlets.metrics.say(say)
    return TrainingResult(leg.step, loss, validation, leg.skipped_steps, config.out)


def _check_job(adapter: Adapter, fingerprint: str) -> None:
    """Raises ConfigError or DataError, on all ranks alike. Collective."""
    job = adapter.job
    if job.topology.model_size > 1:
        raise ConfigError("--model-parallel above 1 is not built yet: leave it at 1")
    if others := job.agree(fingerprint):
        raise DataError(f"{len(others)} of {job.topology.size} ranks read another text than rank 0: give every host the same files")
