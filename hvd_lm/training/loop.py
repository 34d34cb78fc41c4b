"""`train`: the story of a run, from its texts to its last checkpoint. Knows no framework."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from hvd_lm.adapters import adapter as make_adapter
from hvd_lm.adapters.base import Adapter
from hvd_lm.adapters.ending import ending_together
from hvd_lm.checkpoint import CheckpointWriter
from hvd_lm.communication.auto import choose
from hvd_lm.communication.link import read_link
from hvd_lm.communication.measure import Work
from hvd_lm.compression.compressors import Compression
from hvd_lm.config import RunConfig, with_passes, with_vocabulary_size
from hvd_lm.data.texts import read_texts
from hvd_lm.errors import ConfigError, require
from hvd_lm.evaluation.figures import Evaluation
from hvd_lm.idle_settings import idle_settings
from hvd_lm.job import launcher
from hvd_lm.job.agreement import settings, source_digest
from hvd_lm.job.messages import warn
from hvd_lm.job.point_to_point import part_of_job
from hvd_lm.job.stop import WARNING, Stop
from hvd_lm.job.topology import arrange
from hvd_lm.model.split import shares
from hvd_lm.settings_file import write_yaml
from hvd_lm.training.dataset import Dataset, TextDataset
from hvd_lm.training.elastic import NOBODY, Elastic
from hvd_lm.training.expectation import expecting
from hvd_lm.training.final_test import tested
from hvd_lm.training.folder import claimed, prepare_folder, writing
from hvd_lm.training.leg import Leg
from hvd_lm.training.metrics import Callback, MetricsWriter
from hvd_lm.training.outlets import Outlets
from hvd_lm.training.resume import begin, initial_weights
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
    test: Evaluation | None = None
    """Of the best weights, on the test split of a prepared folder."""

    @property
    def words(self) -> str:
        """For people."""
        judged = ""
        if found := self.validation:
            of_text = found.accuracy is None
            figure = f"perplexity {found.perplexity:.2f}" if of_text else f"accuracy {found.accuracy:.2%}"
            judged = f"validation {figure} after "
        return f"{judged}{self.steps} steps; the run is in {self.out}"


OF_A_RANK = ("out", "resume", "threads", "data", "validation_data", "timeline_filename", "link")
"""Settings that may differ between ranks; their texts may not."""


def train(
    config: RunConfig, *, comm: Any = None, compressor: Compression | None = None, callbacks: Sequence[Callback] = ()
) -> TrainingResult:
    """Train as `config` says, alone or as one rank of a job; rank 0 writes into `config.out`. Collective.

    `comm`, a communicator of mpi4py, makes a job of its ranks alone: several runs share one mpirun. Gradients travel as a
    `compressor` of yours says (docs/communication.md). Rank 0 gives each of the `callbacks` the row of every step, as metrics.jsonl
    has it; one that raises ends the run.

    Raises a HvdLmError (ConfigError, DataError, CheckpointError, FrameworkError, TrainingError, StoppedError, OutOfMemoryError,
    LostWorkerError, RemovedError) that says what to do; once Horovod has started, on all ranks alike but for the last three.
    """
    require(not config.model.classes, "--classes needs texts that have labels: hvd-lm sentiment train reads them")
    require(config.model.source_end is None, "--source-end needs texts and their translations: hvd-lm translate train reads them")

    def read(readers: int) -> Dataset:
        return TextDataset(read_texts(config.data, config.model.vocabulary_size, readers), config.seed)

    return train_on(read, config, comm=comm, compressor=compressor, callbacks=callbacks)


def train_on(
    read: Callable[[int], Dataset],
    config: RunConfig,
    *,
    comm: Any = None,
    compressor: Compression | None = None,
    callbacks: Sequence[Callback] = (),
) -> TrainingResult:
    """As `train`, on what `read` gives so many data ranks; of ``config.data`` only the cut into micro-batches counts."""
    stop = Stop(config.max_hours)
    with stop.signals_heard(WARNING), part_of_job(comm):
        # What can be refused before Horovod starts is.
        launcher.refuse_unknown_launcher()
        topology = arrange(config.topology, launcher.launched_rank(), launcher.launched_size())
        if config.elastic and comm is not None:
            raise ConfigError("an elastic job is all that its launcher starts: train without comm=, or without elastic")
        if config.communication.plan and compressor:
            raise ConfigError("a compressor says how gradients travel: train with it, or with --plan auto")
        if config.elastic and compressor:
            raise ConfigError("with a compressor every rank keeps a part of the gradients: train without elastic")
        elastic = Elastic(config.framework, stop, config.out, config.keep_checkpoints) if config.elastic else None
        dataset = read(topology.readers)
        for said in idle_settings(config, validates=dataset.has("validation")):
            warn(said)
        config = with_vocabulary_size(config, dataset.tokenizer.vocabulary_size)
        join = partial(
            make_adapter,
            config.framework,
            config.communication,
            config.topology,
            config.threads,
            deterministic=config.deterministic,
            comm=comm,
            compressor=compressor,
        )
        leg = partial(_leg, config, dataset, stop, join, callbacks)
        return elastic.legs(leg) if elastic else leg()


def _leg(
    config: RunConfig,
    dataset: Dataset,
    stop: Stop,
    join: Callable[[], Adapter],
    callbacks: Sequence[Callback],
    elastic: Elastic | None = None,
) -> TrainingResult:
    """Join a job, and train until the run is done; an elastic one, until workers come or go."""
    with ExitStack() as held:
        topology = arrange(config.topology, launcher.launched_rank(), launcher.launched_size())
        shares(config.model, topology)  # refuses a split that cannot be
        common = {"read another text": dataset.fingerprint, "have another test split": dataset.test_fingerprint}
        common |= settings(config, without=OF_A_RANK)
        config = with_passes(config, topology.readers)
        newest = elastic.newest({"run another hvd_lm": source_digest(), **common}) if elastic else NOBODY
        earlier = link = None
        with elastic.told() if elastic else nullcontext():
            if topology.is_writer:
                link = read_link(config.communication.link) if config.communication.link else None
                held.enter_context(claimed(config.out))
                if newest.step is None:
                    earlier = begin(config.out, config.resume, config.model, config.optimizer, dataset.fingerprint)
                else:
                    prepare_folder(config.out, goes_on_after=newest.step)
        adapter = join()
        job = adapter.job
        job.stop = stop
        held.enter_context(ending_together(job))
        settled = earlier.progress.settings if earlier else None
        chosen, link = choose(adapter, link, config.framework, Work.of(config), config.topology, common, settled)
        config = replace(config, communication=chosen)
        with job.trouble.noted():
            adapter.build(config.model, config.optimizer)
        job.agree({**common, "have another compressor": type(adapter.compressor).__qualname__})
        if elastic and newest.step is not None:
            earlier = elastic.snapshot(job, newest)
        initial = partial(initial_weights, config.initial_weights, config.model, dataset.tokenizer)
        step, progress = enter(adapter, earlier, config.seed, initial)
        del earlier  # as large as weights and moments together
        with job.trouble.noted():
            leg = Leg(config, dataset, adapter, step, progress)
            if topology.is_writer:
                _describe(config, dataset)
                metrics = held.enter_context(MetricsWriter(config.out, leg.total_steps, step, callbacks))
                leg.outlets = Outlets(metrics, held.enter_context(CheckpointWriter(config.out, config.keep_checkpoints)))
        job.agree()
        if elastic:
            elastic.entered(leg, newest)
        leg.outlets.metrics.say(f"{job.headline()}\n{leg.headline()}")
        leg.outlets.metrics = expecting(leg.outlets.metrics, link, config.framework, Work.of(config), config.topology, job)
        if config.resume and not leg.step:
            leg.outlets.metrics.say(f"--resume {config.resume}: no checkpoint in {config.out.resolve()} yet, so the run begins")
        loss, validation = leg.run()
        if leg.skipped_steps:
            say = f"{leg.skipped_steps} of {leg.step} steps were skipped because a gradient overflowed in fp16"
            leg.outlets.metrics.say(say)
        averages = leg.validations.averages
        test = tested(adapter, dataset, config.data, config.out, leg.step, averages, leg.outlets.metrics) if config.test else None
    return TrainingResult(leg.step, loss, validation, leg.skipped_steps, config.out, test)


def _describe(config: RunConfig, dataset: Dataset) -> None:
    """What the run is, for those who go on with it."""
    with writing(config.out):
        write_yaml(config, config.out / "config.yaml")
        dataset.tokenizer.save(config.out / "tokenizer.json")
