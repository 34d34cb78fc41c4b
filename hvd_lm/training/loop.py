"""The training loop: knows text, windows, schedule and files, and no framework.

    window = N micro-batches on each of R data ranks -> one reduction -> one optimizer step

The gradient of a step is the mean over all targets of the window on all ranks, whatever N and R are: every micro-batch is
weighted by 1 / (targets of the window), ranks and micro-batches are summed.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hvd_lm import checkpoint as checkpoints
from hvd_lm.adapters import adapter_class
from hvd_lm.adapters.base import Adapter, StepResult, lost_workers_reported
from hvd_lm.checkpoint import Checkpoint, CheckpointWriter, Progress
from hvd_lm.config import RunConfig, to_dict, with_vocabulary_size, write_yaml
from hvd_lm.data.read_ahead import read_ahead
from hvd_lm.data.streams import MicroBatch, Streams, Window, continue_streams
from hvd_lm.data.texts import Texts, read_texts
from hvd_lm.errors import ConfigError, DataError, TrainingError
from hvd_lm.evaluation.exact_loss import evaluation_streams, exact_loss
from hvd_lm.evaluation.perplexity import Evaluation
from hvd_lm.job import launcher, memory
from hvd_lm.model.noise import dropout_masks, dropout_widths
from hvd_lm.model.parameters import InitialWeights
from hvd_lm.training import resume
from hvd_lm.training.loss_scale import LossScale
from hvd_lm.training.metrics import Metrics, MetricsWriter, Row, SilentMetrics
from hvd_lm.training.schedule import learning_rate


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
    texts = read_texts(config)
    fingerprint = texts.fingerprint()
    config = with_vocabulary_size(config, texts.tokenizer.vocabulary_size)
    earlier = None
    if launcher.launched_rank() == 0:
        if earlier := resume.find_checkpoint(config):
            resume.check_text(earlier, fingerprint, config)
        prepare_folder(config.out, goes_on_after=earlier.step if earlier and resume.continues_folder(config) else None)
    adapter = adapter_class(config.framework)(
        config.communication, config.topology, config.threads, deterministic=config.deterministic
    )
    with lost_workers_reported(adapter):
        if adapter.topology.model_size > 1:
            raise ConfigError("--model-parallel above 1 is not built yet: leave it at 1")
        _check_same_text(adapter, fingerprint)
        adapter.build(config.model, config.optimizer)
        if adapter.topology.is_writer:
            adapter.load_weights(earlier.weights if earlier else InitialWeights(config.model, config.seed))
        if earlier:
            adapter.load_optimizer_state(earlier.optimizer_state)
        adapter.broadcast_state()
        step, progress = adapter.broadcast_object((earlier.step, earlier.progress) if earlier else (0, None))
        del earlier  # as large as weights and moments together
        memory.return_freed_memory()
        return _train(_Run(config, texts, fingerprint, adapter, step, progress))


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


_RUN_FILES = ("config.yaml", "metrics.jsonl", "tensorboard", "tokenizer.json", checkpoints.FOLDER)


def _check_same_text(adapter: Adapter, fingerprint: str) -> None:
    differs = adapter.broadcast_object(fingerprint) != fingerprint
    # All ranks must learn of it, or those that are fine would wait for the others.
    different = int(adapter.all_reduce(np.array([float(differs)]))[0])
    if different:
        size = adapter.topology.size
        raise DataError(f"{different} of {size} ranks read another text than rank 0: give every host the same files")


def _train(run: _Run) -> TrainingResult:
    config = run.config
    with ExitStack() as stack:
        if run.adapter.topology.is_writer:
            write_yaml(config, config.out / "config.yaml")
            run.texts.tokenizer.save(config.out / "tokenizer.json")
            run.metrics = stack.enter_context(MetricsWriter(config.out, run.total_steps, goes_on_after=run.step))
            run.writer = stack.enter_context(CheckpointWriter(config.out, config.keep_checkpoints))
        run.metrics.say(run.headline())
        return run.train()


_Batch = tuple[MicroBatch, list[NDArray[np.bool_]]]
"""A micro-batch and its dropout masks."""


class _Run:
    """The state of a training run between two optimizer steps."""

    def __init__(
        self, config: RunConfig, texts: Texts, fingerprint: str, adapter: Adapter, step: int, progress: Progress | None
    ) -> None:
        """A run at its beginning, or after `step` steps if there is `progress`."""
        self.config, self.texts, self.fingerprint, self.adapter = config, texts, fingerprint, adapter
        self.metrics: Metrics = SilentMetrics()
        self.writer: CheckpointWriter | None = None
        self.validation: Streams | None = None
        if len(texts.validation):
            first_input, data = texts.tokenizer.end_of_line_id, config.data
            self.validation = evaluation_streams(adapter, texts.validation, first_input, data.batch_size, data.sequence_length)
        self.passes = config.communication.backward_passes_per_step
        tokens = config.data.batch_size * config.data.sequence_length
        # Micro-batches that share one backward.
        self.together = max(1, config.communication.backward_tokens // tokens)
        self.sequences_per_step = adapter.topology.data_size * config.data.batch_size * self.passes
        self.loss_scale: LossScale | None = None
        if config.communication.compression == "fp16" and adapter.reduces:
            self.loss_scale = LossScale(config.communication.loss_scale, config.communication.loss_scale_growth_steps)
        self.step = step
        self.epoch = 0
        self.micro_batch = 0
        """Next micro-batch of the streams in `training`."""
        self.micro_batches_read = 0
        """Since the run began."""
        self.tokens = 0
        self.seconds = 0.0
        self.best_validation_loss: float | None = None
        self.saved_step: int | None = None
        self.checkpoint_seconds = 0.0
        """That the loop was held up by checkpoints since the last row."""
        self.training = self._training_streams()
        self._batches: Iterator[_Batch] = iter(())
        self.state = adapter.zero_state(config.data.batch_size)
        windows = self._windows_left()
        if progress:
            self._go_on(progress)
        by_epochs = self.step + self._windows_left() + ((config.epochs or 1) - self.epoch - 1) * windows
        if config.steps is None:
            self.total_steps = by_epochs
        else:
            self.total_steps = config.steps if config.epochs is None else min(config.steps, by_epochs)

    def _go_on(self, progress: Progress) -> None:
        data, topology = self.config.data, self.adapter.topology
        self.epoch, self.tokens, self.seconds = progress.epoch, progress.tokens, progress.seconds
        self.micro_batches_read = progress.micro_batches
        self.best_validation_loss = progress.best_validation_loss
        self.saved_step = self.step
        if self.loss_scale and progress.loss_scale:
            self.loss_scale = progress.loss_scale
        self.training, self.micro_batch, continued = continue_streams(
            progress.position,
            self.texts.training,
            first_input=self.texts.tokenizer.end_of_line_id,
            batch_size=data.batch_size,
            sequence_length=data.sequence_length,
            data_rank=topology.data_rank,
            data_size=topology.data_size,
        )
        before_L2SH = progress.lstm_state_L2SH
        state_L2BH = np.zeros((*before_L2SH.shape[:2], data.batch_size, before_L2SH.shape[3]), np.float32)
        for column, stream in enumerate(self.training.stream_ids):
            if (old := continued[stream]) is not None:
                state_L2BH[:, :, column] = before_L2SH[:, :, old]
        self.state = self.adapter.state_from_numpy(state_L2BH)

    def _windows_left(self) -> int:
        """Windows until the end of the epoch."""
        return -(-(self.training.micro_batches - self.micro_batch) // self.passes)

    def _training_streams(self) -> Streams:
        return Streams(
            self.texts.training,
            first_input=self.texts.tokenizer.end_of_line_id,
            batch_size=self.config.data.batch_size,
            sequence_length=self.config.data.sequence_length,
            data_rank=self.adapter.topology.data_rank,
            data_size=self.adapter.topology.data_size,
        )

    def headline(self) -> str:
        model, data, texts = self.config.model, self.config.data, self.texts
        goes_on = f"going on after step {self.step}, {self.tokens:,} tokens; " if self.step else ""
        return (
            f"{self.adapter.summary()}; {self.adapter.topology.size} rank(s) x {self.adapter.threads} thread(s)\n"
            f"model: vocabulary {model.vocabulary_size}, embedding {model.embedding_size}, {model.layers} LSTM layer(s) of "
            f"{model.hidden_size}; text: {len(texts.training):,} tokens to train on, {len(texts.validation):,} to validate\n"
            f"{self.total_steps} optimizer steps of {self.passes} x {data.batch_size} x "
            f"{data.sequence_length} tokens per rank; {goes_on}writing to {self.config.out}"
        )

    def train(self) -> TrainingResult:
        """Epochs of windows, until `total_steps`."""
        self._batches = self._read_ahead()
        if self.step >= self.total_steps:
            self.metrics.say(f"the run has its {self.total_steps} steps already: raise --steps or --epochs to go on")
        loss, validation = math.nan, None
        while self.step < self.total_steps:
            window = next(self.training.windows(self.passes, self.micro_batch), None)
            if window is None:
                self._begin_epoch()
                continue
            row = self._window(window)
            ends = window.stop == self.training.micro_batches
            validation = self._validate() if self._due(self.config.validation_every, ends) else None
            if validation:
                row |= {"validation_loss": validation.loss, "perplexity": validation.perplexity}
            self.metrics.write(row)
            improved = self._note_best(validation)
            if improved or self._due(self.config.checkpoint_every, ends):
                self._checkpoint(validation)
            loss = row["loss"]
        skipped = self.loss_scale.skipped_steps if self.loss_scale else 0
        if skipped:
            self.metrics.say(f"{skipped} of {self.step} steps were skipped because a gradient overflowed in fp16")
        return TrainingResult(self.step, loss, validation, skipped, self.config.out)

    def _begin_epoch(self) -> None:
        self.epoch += 1
        self.training, self.micro_batch = self._training_streams(), 0
        self._batches = self._read_ahead()
        self.state = self.adapter.zero_state(self.config.data.batch_size)

    def _note_best(self, validation: Evaluation | None) -> bool:
        """Whether this validation is the best so far."""
        best = self.best_validation_loss
        if validation is None or not math.isfinite(validation.loss) or (best is not None and validation.loss >= best):
            return False
        self.best_validation_loss = validation.loss
        return True

    def _due(self, every: int | None, ends: bool) -> bool:
        """Whether something that happens `every` steps (None: at the end of epochs and of the run) happens after this one."""
        return self.step == self.total_steps or (ends if every is None else self.step % every == 0)

    def _window(self, window: Window) -> Row:
        """One optimizer step; its row for the metrics."""
        began = time.perf_counter()
        communication = self.config.communication
        scale = self.loss_scale.scale if self.loss_scale else 1.0
        predivide = communication.gradient_predivide_factor
        weight = scale / (predivide * window.target_count)
        state, waited = self.state, 0.0
        for index in range(window.start, window.stop):
            asked = time.perf_counter()
            batch, masks = next(self._batches)
            waited += time.perf_counter() - asked
            left = window.stop - 1 - index
            state = self.adapter.accumulate(
                batch.inputs_TB,
                batch.targets_TB,
                state,
                weight=weight,
                last=left == 0,
                defer=left % self.together,
                dropout_masks=masks,
            )
        rate = learning_rate(
            self.config.optimizer, step=self.step + 1, total_steps=self.total_steps, sequences_per_step=self.sequences_per_step
        )
        unscale = predivide / scale
        if communication.reduction == "adasum":
            # Adasum combines gradients of whole batches; each rank brought its share of the mean.
            unscale *= self.adapter.topology.data_size
        self._release_checkpoint()
        outcome = self.adapter.step(learning_rate=rate, clip=self.config.optimizer.clip, unscale=unscale)
        loss = outcome.loss_sum / window.target_count
        self._check(loss, outcome)
        self.step += 1
        self.state, self.micro_batch = state, window.stop
        self.micro_batches_read += window.stop - window.start
        self.tokens += window.target_count
        elapsed = time.perf_counter() - began
        self.seconds += elapsed
        row: Row = {
            "step": self.step,
            "epoch": self.epoch + 1,
            "loss": loss,
            "tokens": self.tokens,
            "tokens_per_second": window.target_count / elapsed,
            "learning_rate": rate,
            "gradient_norm": outcome.gradient_norm,
            "seconds": self.seconds,
            "data_seconds": waited,
            "checkpoint_seconds": self.checkpoint_seconds,
        }
        self.checkpoint_seconds = 0.0
        if self.loss_scale:
            self.loss_scale.update(overflow=not outcome.applied)
            row |= {
                "skipped": not outcome.applied,
                "skipped_steps": self.loss_scale.skipped_steps,
                "loss_scale": self.loss_scale.scale,
            }
        return row

    def _read_ahead(self) -> Iterator[_Batch]:
        """The micro-batches that the epoch still has, with their dropout masks."""
        streams, earlier = self.training, self.micro_batches_read - self.micro_batch

        def make(index: int) -> _Batch:
            return streams.micro_batch(index), self._dropout_masks(earlier + index)

        return read_ahead(make, range(self.micro_batch, streams.micro_batches))

    def _dropout_masks(self, micro_batch: int) -> list[NDArray[np.bool_]]:
        model = self.config.model
        return dropout_masks(
            model.dropout,
            widths=dropout_widths(model.embedding_size, model.hidden_size, model.layers),
            sequence_length=self.config.data.sequence_length,
            stream_ids=self.training.stream_ids,
            micro_batch=micro_batch,
            seed=self.config.seed,
        )

    def _check(self, loss: float, outcome: StepResult) -> None:
        """Raises TrainingError, on all ranks alike, if the step cannot be trusted; the weights are still those before it."""
        if math.isfinite(loss) and (outcome.applied or self.loss_scale):
            return
        what = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient norm is {outcome.gradient_norm}"
        advice = "lower --learning-rate, set --clip, or add --warmup-steps"
        if self.step:
            self._checkpoint(None)
            advice += f"; the weights before that step are in {self.config.out / checkpoints.FOLDER}"
        raise TrainingError(f"{what} at step {self.step + 1}, which was not applied: {advice}")

    def _validate(self) -> Evaluation | None:
        if self.validation is None:
            return None
        tokens = len(self.texts.validation)
        return Evaluation(exact_loss(self.adapter, self.validation) / tokens, tokens)

    def _checkpoint(self, validation: Evaluation | None) -> None:
        """Collective: the LSTM states of all ranks go into it."""
        if self.saved_step == self.step:
            return
        self.saved_step = self.step
        began = time.perf_counter()
        self._write_checkpoint(validation)
        self.checkpoint_seconds += time.perf_counter() - began

    def _release_checkpoint(self) -> None:
        """Before the weights change."""
        if self.writer:
            began = time.perf_counter()
            self.writer.release()
            self.checkpoint_seconds += time.perf_counter() - began

    def _write_checkpoint(self, validation: Evaluation | None) -> None:
        lstm_state_L2SH = np.concatenate(self.adapter.all_gather(self.adapter.state_to_numpy(self.state)), axis=2)
        if self.writer is None:
            return
        progress = Progress(
            epoch=self.epoch,
            position=self.training.position(self.micro_batch),
            micro_batches=self.micro_batches_read,
            tokens=self.tokens,
            seconds=self.seconds,
            text=self.fingerprint,
            lstm_state_L2SH=lstm_state_L2SH,
            loss_scale=self.loss_scale and replace(self.loss_scale),
            validation_loss=validation.loss if validation else None,
            best_validation_loss=self.best_validation_loss,
            settings=to_dict(self.config),
        )
        self.writer.write(
            Checkpoint(
                step=self.step,
                model=self.config.model,
                optimizer=self.config.optimizer,
                weights=self.adapter.weights(copy=False),
                optimizer_state=self.adapter.optimizer_state(copy=False),
                tokenizer=self.texts.tokenizer,
                progress=progress,
            )
        )
