"""The training loop: knows text, windows, schedule and files, and no framework.

    window = N micro-batches on each of R data ranks -> one reduction -> one optimizer step

The gradient of a step is the mean over all targets of the window on all ranks, whatever N and R are: every micro-batch is
weighted by 1 / (targets of the window), ranks and micro-batches are summed.
"""

from __future__ import annotations

import hashlib
import math
import os
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hvd_lm import checkpoint as checkpoints
from hvd_lm import launch
from hvd_lm.adapters import adapter_class
from hvd_lm.adapters.base import Adapter, State, StepResult
from hvd_lm.config import DataConfig, RunConfig, with_vocabulary_size, write_yaml
from hvd_lm.data.corpus import read_text
from hvd_lm.data.streams import Streams, Window
from hvd_lm.data.tokenizer import Tokenizer, train_word_level
from hvd_lm.dropout import dropout_masks, dropout_widths
from hvd_lm.errors import ConfigError, DataError, LostWorkerError, TrainingError
from hvd_lm.evaluation import Evaluation, evaluate_streams
from hvd_lm.loss_scale import LossScale
from hvd_lm.metrics import Metrics, MetricsWriter, Row, SilentMetrics
from hvd_lm.schedule import learning_rate
from hvd_lm.weights import initial_weights


@dataclass(frozen=True)
class TrainingResult:
    """How a run ended; the same on all ranks."""

    steps: int
    loss: float
    """Nats per token over the last window."""
    validation: Evaluation | None
    skipped_steps: int
    out: Path


@dataclass(frozen=True)
class Corpus:
    """The tokens of a run."""

    tokenizer: Tokenizer
    training: NDArray[np.int32]
    validation: NDArray[np.int32]

    def fingerprint(self) -> str:
        """Equal on all ranks, or they would train on different texts."""
        hashed = hashlib.sha256(self.tokenizer.to_json().encode())
        for tokens in (self.training, self.validation):
            hashed.update(tokens.tobytes())
        return hashed.hexdigest()


def train(config: RunConfig) -> TrainingResult:
    """Train as `config` says, alone or as one rank of a job; rank 0 writes into `config.out`. Collective.

    Raises a HvdLmError (ConfigError, DataError, FrameworkError, TrainingError, LostWorkerError) that says what to do.
    """
    # Everything that can be refused is refused before Horovod starts, on all ranks alike.
    corpus = read_corpus(config)
    if launch.launched_rank() == 0:
        prepare_folder(config.out)
    config = with_vocabulary_size(config, corpus.tokenizer.vocabulary_size)
    adapter = adapter_class(config.framework)(config.communication, config.topology, config.threads)
    try:
        return _train(config, corpus, adapter)
    except adapter.communication_errors as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise LostWorkerError(f"a collective operation failed, probably because another rank ended ({reason})") from error


def read_corpus(config: RunConfig) -> Corpus:
    """Read, split and tokenize the texts.

    Raises DataError if a text is missing, empty or too short; ConfigError for a vocabulary larger than the text yields.
    """
    data = config.data
    text = read_text(data.data)
    tokenizer = train_word_level(text, config.model.vocabulary_size)
    tokens = tokenizer.encode(text)
    if data.validation_data:
        training, validation = tokens, tokenizer.encode(read_text(data.validation_data))
    else:
        split = len(tokens) - int(len(tokens) * data.validation_share)
        training, validation = tokens[:split], tokens[split:]
    _check_length(training, data, config)
    return Corpus(tokenizer, training, validation)


def _check_length(tokens: NDArray[np.int32], data: DataConfig, config: RunConfig) -> None:
    data_size = max(1, launch.launched_size() // config.topology.model_parallel)
    if len(tokens) < data_size * data.batch_size:
        raise DataError(
            f"the training text has {len(tokens)} tokens, fewer than the {data_size * data.batch_size} streams of "
            f"{data_size} data rank(s) x --batch-size {data.batch_size}: give more text or a smaller batch"
        )


def prepare_folder(out: Path) -> None:
    """Make `out`, and move what an earlier run left in it aside, so that nothing is lost.

    Raises ConfigError if it cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
        earlier = [path for name in _RUN_FILES if (path := out / name).exists()]
        if earlier:
            number = 1 + sum(1 for _ in out.glob("earlier-*"))
            aside = out / f"earlier-{number}"
            aside.mkdir()
            for path in earlier:
                path.rename(aside / path.name)
    except OSError as error:
        raise ConfigError(f"cannot write to --out {out}: {error.strerror or error}") from error


_RUN_FILES = ("config.yaml", "metrics.jsonl", "tensorboard", "tokenizer.json", checkpoints.FOLDER)


def _train(config: RunConfig, corpus: Corpus, adapter: Adapter) -> TrainingResult:
    topology = adapter.topology
    if topology.model_size > 1:
        raise ConfigError("--model-parallel above 1 is not built yet: leave it at 1")
    fingerprint = corpus.fingerprint()
    differs = adapter.broadcast_object(fingerprint) != fingerprint
    # All ranks must learn of it, or those that are fine would wait for the others.
    different = int(adapter.all_reduce(np.array([float(differs)]))[0])
    if different:
        raise DataError(f"{different} of {topology.size} ranks read another text than rank 0: give every host the same files")

    adapter.build(config.model, config.optimizer)
    if topology.is_writer:
        adapter.load_weights(initial_weights(config.model, config.seed))
    adapter.broadcast_state()

    with ExitStack() as stack:
        run = _Run(config, corpus, adapter)
        if topology.is_writer:
            write_yaml(config, config.out / "config.yaml")
            corpus.tokenizer.save(config.out / "tokenizer.json")
            run.metrics = stack.enter_context(MetricsWriter(config.out, run.total_steps))
        run.metrics.say(run.headline())
        return run.train()


class _Run:
    """The state of a training run between two optimizer steps."""

    def __init__(self, config: RunConfig, corpus: Corpus, adapter: Adapter) -> None:
        self.config, self.corpus, self.adapter = config, corpus, adapter
        self.metrics: Metrics = SilentMetrics()
        self.training = self._streams(corpus.training)
        self.validation = self._streams(corpus.validation) if len(corpus.validation) else None
        communication = config.communication
        self.sequences_per_step = adapter.topology.data_size * config.data.batch_size * communication.backward_passes_per_step
        windows = sum(1 for _ in self.training.windows(communication.backward_passes_per_step))
        limits = [config.steps, config.epochs and config.epochs * windows]
        self.total_steps = min((limit for limit in limits if limit is not None), default=windows)
        self.loss_scale: LossScale | None = None
        if communication.compression == "fp16" and adapter.reduces:
            self.loss_scale = LossScale(communication.loss_scale, communication.loss_scale_growth_steps)
        self.step = 0
        self.tokens = 0
        self.seconds = 0.0

    def _streams(self, tokens: NDArray[np.int32]) -> Streams:
        return Streams(
            tokens,
            first_input=self.corpus.tokenizer.end_of_line_id,
            batch_size=self.config.data.batch_size,
            sequence_length=self.config.data.sequence_length,
            data_rank=self.adapter.topology.data_rank,
            data_size=self.adapter.topology.data_size,
        )

    def headline(self) -> str:
        model, data, corpus = self.config.model, self.config.data, self.corpus
        return (
            f"{self.adapter.summary()}; {self.adapter.topology.size} rank(s) x {self.adapter.threads} thread(s)\n"
            f"model: vocabulary {model.vocabulary_size}, embedding {model.embedding_size}, {model.layers} LSTM layer(s) of "
            f"{model.hidden_size}; text: {len(corpus.training):,} tokens to train on, {len(corpus.validation):,} to validate\n"
            f"{self.total_steps} optimizer steps of {self.config.communication.backward_passes_per_step} x {data.batch_size} x "
            f"{data.sequence_length} tokens per rank; writing to {self.config.out}"
        )

    def train(self) -> TrainingResult:
        """Epochs of windows, until `total_steps`."""
        result = TrainingResult(0, math.nan, None, 0, self.config.out)
        epoch = 0
        while self.step < self.total_steps:
            state = self.adapter.zero_state(self.config.data.batch_size)
            windows = list(self.training.windows(self.config.communication.backward_passes_per_step))
            for window in windows:
                state, row = self._window(epoch, window, state)
                ends = self.step == self.total_steps or window is windows[-1]
                validation = self._validate() if self._due(self.config.validation_every, ends) else None
                if validation:
                    row |= {"validation_loss": validation.loss, "perplexity": validation.perplexity}
                self.metrics.write(row)
                if self._due(self.config.checkpoint_every, ends):
                    self._checkpoint()
                skipped = self.loss_scale.skipped_steps if self.loss_scale else 0
                result = TrainingResult(self.step, row["loss"], validation, skipped, self.config.out)
                if self.step == self.total_steps:
                    break
            epoch += 1
        if result.skipped_steps:
            self.metrics.say(f"{result.skipped_steps} of {result.steps} steps were skipped because a gradient overflowed in fp16")
        return result

    def _due(self, every: int | None, ends: bool) -> bool:
        """Whether something that happens `every` steps (None: at the end of epochs and of the run) happens after this one."""
        return self.step == self.total_steps or (ends if every is None else self.step % every == 0)

    def _window(self, epoch: int, window: Window, state: State) -> tuple[State, Row]:
        """One optimizer step: its row for the metrics, and the LSTM state to go on with."""
        began = time.perf_counter()
        communication = self.config.communication
        scale = self.loss_scale.scale if self.loss_scale else 1.0
        predivide = communication.gradient_predivide_factor
        weight = scale / (predivide * window.target_count)
        for index in range(window.start, window.stop):
            batch = self.training.micro_batch(index)
            state = self.adapter.accumulate(
                batch.inputs_TB,
                batch.targets_TB,
                state,
                weight=weight,
                last=index == window.stop - 1,
                dropout_masks=self._dropout_masks(epoch * self.training.micro_batches + index),
            )
        rate = learning_rate(
            self.config.optimizer, step=self.step + 1, total_steps=self.total_steps, sequences_per_step=self.sequences_per_step
        )
        unscale = predivide / scale
        if communication.reduction == "adasum":
            # Adasum combines gradients of whole batches; each rank brought its share of the mean.
            unscale *= self.adapter.topology.data_size
        outcome = self.adapter.step(learning_rate=rate, clip=self.config.optimizer.clip, unscale=unscale)
        loss = outcome.loss_sum / window.target_count
        self._check(loss, outcome)
        self.step += 1
        self.tokens += window.target_count
        elapsed = time.perf_counter() - began
        self.seconds += elapsed
        row: Row = {
            "step": self.step,
            "epoch": epoch + 1,
            "loss": loss,
            "tokens": self.tokens,
            "tokens_per_second": window.target_count / elapsed,
            "learning_rate": rate,
            "gradient_norm": outcome.gradient_norm,
            "seconds": self.seconds,
        }
        if self.loss_scale:
            self.loss_scale.update(overflow=not outcome.applied)
            row |= {
                "skipped": not outcome.applied,
                "skipped_steps": self.loss_scale.skipped_steps,
                "loss_scale": self.loss_scale.scale,
            }
        return state, row

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
            self._checkpoint()
            advice += f"; the weights before that step are in {self.config.out / checkpoints.FOLDER}"
        raise TrainingError(f"{what} at step {self.step + 1}, which was not applied: {advice}")

    def _validate(self) -> Evaluation | None:
        return evaluate_streams(self.adapter, self.validation) if self.validation else None

    def _checkpoint(self) -> None:
        if not self.adapter.topology.is_writer:
            return
        counters: dict[str, Any] = {"tokens": self.tokens, "seconds": self.seconds}
        if self.loss_scale:
            counters |= {"loss_scale": self.loss_scale.scale, "skipped_steps": self.loss_scale.skipped_steps}
        checkpoint = checkpoints.Checkpoint(
            step=self.step,
            model=self.config.model,
            optimizer=self.config.optimizer,
            weights=self.adapter.weights(),
            optimizer_state=self.adapter.optimizer_state(),
            tokenizer=self.corpus.tokenizer,
            counters=counters,
        )
        checkpoints.save(checkpoint, self.config.out, keep=self.config.keep_checkpoints)
