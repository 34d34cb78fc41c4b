"""A leg of a run: from the snapshot that it is entered with, step by step, until the run is done or the leg is left.

    window = N micro-batches on each of R data ranks -> one reduction -> one optimizer step

The gradient of a step is the mean over all targets of the window on all ranks, whatever N and R are: every micro-batch is
weighted by 1 / (targets of the window), ranks and micro-batches are summed.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hvd_lm.adapters.base import Adapter, State, StepResult
from hvd_lm.adapters.job import Job
from hvd_lm.checkpoint import FOLDER, Progress
from hvd_lm.config import RunConfig
from hvd_lm.data.sources import Window
from hvd_lm.errors import CheckpointError, HvdLmError, MembersChangedError, StoppedError, TrainingError
from hvd_lm.evaluation.figures import Evaluation
from hvd_lm.job.agreement import Trouble
from hvd_lm.job.stop import SIGNALS
from hvd_lm.plain_values import to_dict
from hvd_lm.training import headline, parts, replicas
from hvd_lm.training.accumulation import Accumulation
from hvd_lm.training.cursor import dataset_cursor, dropout_noise, go_on
from hvd_lm.training.dataset import Dataset
from hvd_lm.training.judgement import refused
from hvd_lm.training.late_gradients import LateGradients
from hvd_lm.training.local_steps import LocalSteps
from hvd_lm.training.loss_scale import INITIAL, LossScale
from hvd_lm.training.metrics import Row
from hvd_lm.training.noise_scale import NoiseScale
from hvd_lm.training.outlets import Outlets
from hvd_lm.training.samples import Samples
from hvd_lm.training.schedule import begun, learning_rate
from hvd_lm.training.snapshot import Snapshot, owned
from hvd_lm.training.validations import Validations


class Leg:
    """The state of a run between two optimizer steps, and the steps themselves. All ranks make every call alike."""

    def __init__(
        self, config: RunConfig, dataset: Dataset, adapter: Adapter, step: int = 0, progress: Progress | None = None
    ) -> None:
        """A run at its beginning, or after `step` steps if there is `progress`; weights and moments are in the adapter."""
        self._config, self._dataset, self._adapter = config, dataset, adapter
        data, communication, topology = config.data, config.communication, adapter.job.topology
        self.outlets = Outlets()
        self._passes, self._everies = communication.backward_passes_per_step, (config.validation_every, config.checkpoint_every)
        self._noise = NoiseScale(adapter, config.noise_scale_every)
        self._accumulation = Accumulation(adapter, config.model, data, communication.backward_tokens, config.seed, self._noise)
        self._local = LocalSteps(adapter)
        self._samples = Samples(adapter, dataset.tokenizer, config.sample_every, config.sample_prompt)
        self.validations = Validations(adapter, dataset, data, config.patience)
        self._loss_scale: LossScale | None = None
        if communication.compression == "fp16" and adapter.job.groups["all"].communicates:
            self._loss_scale = LossScale(communication.loss_scale or INITIAL, communication.loss_scale_growth_steps)
        self._late = LateGradients(adapter, self._loss_scale)
        self._cursor = dataset_cursor(dataset, data, topology, dropout_noise(config.model, config.seed))
        self._entered = progress if config.elastic else None
        self._state: State = adapter.zero_state(data.batch_size)
        self.step = step
        self.tokens = 0
        """Targets so far, all ranks."""
        self._seconds = 0.0
        self._to_end = False
        """Whether a rank is asked to stop, or workers come or go."""
        self._states_2SU: NDArray[np.float32] | None = None
        """After the last step, of all ranks: of an elastic run, in which a rank may be gone when they are wanted."""
        self.row: Row | None = None
        """Of the last step."""
        self.is_finished = True
        """Whether what is due after the last step has been done."""
        self._saved_step: int | None = None
        self._checkpoint_seconds = 0.0
        """That the loop was held up by checkpoints since the last row."""
        if progress:
            state_2BU = go_on(self._cursor, progress, dataset, data, topology)
            self._state = adapter.state_from_numpy(state_2BU)
            self._go_on(progress)
        by_epochs, epochs = step, range(self._cursor.epoch, config.epochs or 1)
        if epochs:
            by_epochs += self._cursor.windows_left(self._passes) + dataset.windows(epochs[1:], self._passes, data, topology)
        if config.steps is None:
            self.total_steps = by_epochs
        else:
            self.total_steps = config.steps if config.epochs is None else min(config.steps, by_epochs)
        settings = (progress and progress.settings) or {}
        same = all(settings.get(name) == getattr(config, name) for name in ("steps", "epochs"))
        self._schedule = begun(progress.schedule if progress else None, step, self.total_steps, is_of_same_length=same)

    def _go_on(self, progress: Progress) -> None:
        self.tokens, self._seconds = progress.tokens, progress.seconds
        self.validations.best = progress.best_validation_loss
        self.validations.since_best = progress.validations_since_best
        self.validations.averages.go_on(progress.averaging)
        self._saved_step = self.step
        if self._loss_scale and progress.loss_scale:
            self._loss_scale.skipped_steps = progress.loss_scale.skipped_steps
            if self._config.communication.loss_scale is None:
                self._loss_scale.scale, self._loss_scale.good_steps = progress.loss_scale.scale, progress.loss_scale.good_steps

    @property
    def job(self) -> Job:
        """That it is a leg in."""
        return self._adapter.job

    @property
    def ended_early(self) -> bool:
        """Whether validations have stopped getting better."""
        return self.validations.is_over

    @property
    def skipped_steps(self) -> int:
        """Steps that were not applied because a gradient overflowed in fp16."""
        return self._loss_scale.skipped_steps if self._loss_scale else 0

    def headline(self) -> str:
        """What is trained on what, for how long."""
        readers, of_examples = self.job.topology.readers, not self._cursor.source.carries_state
        a_step = headline.a_step(self._config.communication, self._config.data, readers, of_examples=of_examples)
        goes_on = f"going on after step {self.step}, {self.tokens:,} tokens; " if self.step else ""
        return (
            f"model: {headline.described(self._config.model)}; {self._dataset.words}\n"
            f"{self.total_steps} optimizer steps of {a_step}; "
            f"{goes_on}writing to {self._config.out}{headline.nothing_left(self.step, self.total_steps, self.ended_early)}"
        )

    # --- the loop ----------------------------------------------------------------------------------------

    def run(self, until: int | None = None) -> tuple[float, Evaluation | None]:
        """Train until the run is done, or step `until` is; the loss of the last window, and what was validated after it.

        Raises, on all ranks alike, TrainingError, StoppedError, or what went wrong on one of them; the weights are written before.
        Raises MembersChangedError, after which it can be left. Collective.
        """
        last: tuple[float, Evaluation | None] = (math.nan, None)
        end = min(self.total_steps, until or self.total_steps)
        with self._adapter.job.stop.signals_heard(*SIGNALS):
            try:
                if not self.is_finished:
                    last = self._finish()
                while self.step < end and not (self._to_end or self.ended_early):
                    last = self._step()
                stopped = self._stopped() if self.step < end and not self.ended_early else None
                if isinstance(stopped, StoppedError) or self.ended_early:
                    self._checkpoint(last[1])
            finally:
                self._cursor.rest()
            with self._trouble.noted():
                if self.outlets.writer:
                    self.outlets.writer.wait()
            self._agree()
            if stopped:
                raise stopped
            if self.ended_early and last[1]:
                self.outlets.metrics.say(f"the run ends after step {self.step}: {self.validations.why_over}")
        return last

    def _step(self) -> tuple[float, Evaluation | None]:
        """One optimizer step, and what is due after it."""
        if self._cursor.at_end:
            self._cursor.begin_epoch()
            self._state = self._adapter.zero_state(self._config.data.batch_size)
            self._states_2SU = None if self._states_2SU is None else np.zeros_like(self._states_2SU)
        self.row = self._window(self._cursor.next_window(self._passes))
        self.is_finished = False
        return self._finish()

    def _finish(self) -> tuple[float, Evaluation | None]:
        """What is due after a step."""
        assert self.row is not None
        row, validation = dict(self.row), None
        to_validate, to_write = map(self._due, self._everies)
        if to_validate or to_write:
            self._late.catch_up(self.step)
        if to_validate:
            try:
                validation = self.validations.run()
                self._agree()
                self._mend_replicas()
            except HvdLmError:
                # The weights of this step are kept: it goes on after it.
                with self._trouble.noted():
                    self.outlets.metrics.write(row)
                raise
        with self._trouble.noted():
            if (sample := self._samples.after(self.step)) is not None:
                row["sample"] = sample
        if validation:
            row |= {"validation_loss": validation.loss, **validation.headline}
        with self._trouble.noted():
            self.outlets.metrics.write(row)
        improved = validation is not None and self.validations.note(validation)
        if validation and not improved:
            self._schedule.plateau(self._config.optimizer)
        if improved or to_write:
            self._checkpoint(validation)
        self.is_finished = True
        return row["loss"], validation

    def _due(self, every: int | None, window: Window | None = None) -> bool:
        """Whether what is done `every` steps (None: at ends of epochs and of the run) is after this one, or that of `window`."""
        at_end = window.stop == self._cursor.source.micro_batches if window else self._cursor.at_end
        step = self.step + (window is not None)
        return step == self.total_steps or (at_end if every is None else step % every == 0)

    def _window(self, window: Window) -> Row:
        """One optimizer step; its row for the metrics."""
        began = time.perf_counter()
        scale = self._loss_scale.scale if self._loss_scale else 1.0
        predivide = self._config.communication.gradient_predivide_factor
        weight = scale / (predivide * window.target_count)
        is_own = self._local.begin(self.step + 1, wanted=any(self._due(every, window) for every in self._everies))
        state, waited = self._accumulation.run(window, self._cursor, self._state, weight=weight, step=self.step + 1)
        # Before the weights change: whoever has made the step has all that belongs to it.
        states_2SU = self._gathered(state) if self._config.elastic else None
        rate = self._learning_rate() * window.relative_length
        # Adasum, and steps of a rank's own, take gradients of whole batches; each rank has its share of the mean.
        of_batches = self._config.communication.reduction == "adasum" or is_own
        unscale = predivide / scale * (self._adapter.job.topology.readers if of_batches else 1)
        self._checkpoint_seconds += self.outlets.release_checkpoint()
        outcome = self._adapter.step(learning_rate=rate, clip=self._config.optimizer.clip, unscale=unscale)
        ranks = self._adapter.job.topology.readers if is_own else 1
        loss = math.nan if is_own and self._trouble.error else outcome.loss_sum / window.target_count * ranks
        if self._local.hear(self.step + 1, outcome):
            self._to_end = outcome.ranks_to_end > 0
            if outcome.ranks_in_trouble:
                self._agree()
        self._judge(loss, outcome)
        self._schedule.step = self._schedule.coming(self.total_steps - self.step)
        self.step += 1
        self._state, self._states_2SU = state, states_2SU
        self._cursor.pass_window(window)
        self.tokens += window.target_count
        averaged = self._local.average(self.step, wanted=any(map(self._due, self._everies)))
        elapsed = time.perf_counter() - began
        self._seconds += elapsed
        row: Row = {
            "step": self.step,
            "epoch": self._cursor.epoch + 1,
            "loss": loss,
            "tokens": self.tokens,
            "tokens_per_second": window.target_count / elapsed,
            "learning_rate": rate,
            "gradient_norm": outcome.gradient_norm,
            "bytes_sent": outcome.bytes_sent + averaged,
            "seconds": self._seconds,
            "data_seconds": waited,
            "checkpoint_seconds": self._checkpoint_seconds,
            **outcome.waits,
            **self._noise.figures(window.target_count, outcome.gradient_norm),
        }
        self._checkpoint_seconds = 0.0
        if self._config.model.softmax == "sampled":
            row["sampled_words"] = self._config.model.sampled_words
        if self._adapter.is_pipeline:
            row["pipeline_seconds"] = self._adapter.waited_seconds()
        if self._loss_scale:
            row |= {
                "skipped": not outcome.applied,
                "skipped_steps": self._loss_scale.skipped_steps,
                "loss_scale": self._loss_scale.scale,
            }
        return row

    def _learning_rate(self) -> float:
        """Of the next step."""
        sequences = self._adapter.job.topology.readers * self._config.data.batch_size * self._passes
        return learning_rate(
            self._config.optimizer,
            self._schedule,
            step=self._schedule.coming(self.total_steps - self.step),
            epoch=self._cursor.epoch,
            sequences_per_step=sequences,
        )

    # --- when it cannot go on ----------------------------------------------------------------------------

    @property
    def _trouble(self) -> Trouble:
        return self._adapter.job.trouble

    def _agree(self) -> None:
        """Raises what any rank has noted, on all ranks alike. Collective."""
        if error := self._adapter.job.common_error():
            if isinstance(error, CheckpointError):
                self._saved_step = None  # what was to be written after it has not begun
            self._keep_weights()
            raise error

    def _judge(self, loss: float, outcome: StepResult) -> None:
        """Raises TrainingError, on all ranks alike, if the step was neither applied nor skipped for a smaller loss scale."""
        try:
            if refusal := refused(loss, outcome, self.step + 1, may_overflow=self._loss_scale is not None):
                if self._local.is_own:
                    # Of this rank alone: the others hear of it when ranks next tell each other.
                    self._trouble.note(TrainingError(refusal))
                    return
                raise TrainingError(refusal)
            if self._loss_scale:
                self._loss_scale.update(overflow=not outcome.applied)
        except TrainingError as error:
            self._adapter.catch_up(apply=False)  # the window of this step will be read again
            raise TrainingError(f"{error}{self._keep_weights()}") from None

    def _mend_replicas(self) -> None:
        """Raises TrainingError, on all ranks alike, if the weights of a rank were far from those of rank 0. Collective."""
        if not (distances := replicas.mend(self._adapter)):
            return
        what = f"after step {self.step} the weights of {replicas.described(distances, self._adapter.job.places)}"
        if max(distances.values()) > replicas.ROUNDING:
            raise TrainingError(f"{what}: look after that machine, then go on with --resume auto{self._keep_weights()}")
        self.outlets.metrics.say(f"{what}, as rounding on unlike processors makes them: they were given those of rank 0")

    def _stopped(self) -> StoppedError | MembersChangedError:
        """Who was asked to stop, and by what, if anybody was; the same on all ranks. Collective."""
        job = self._adapter.job
        reasons = [(reason, place) for reason, place in zip(job.tell(job.stop.reason), job.places, strict=True) if reason]
        if not reasons:
            return MembersChangedError(f"workers come or go after step {self.step}")
        reason, place = reasons[0]
        why = f"{reason} ({place})" if job.topology.size > 1 else reason
        return StoppedError(f"stopped after step {self.step} by {why}: go on with --resume auto")

    def _keep_weights(self) -> str:
        """Write them, if there has been a step and they are numbers, and say so. Collective."""
        if not self.step:
            return ""
        if not replicas.is_finite(self._adapter):
            return f"; the weights of step {self.step} are no numbers any more, and are not written"
        self._checkpoint(None)
        return f"; the weights of step {self.step} are in {self._config.out / FOLDER}"

    # --- checkpoints -------------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """The run after this step, in arrays of its own: this rank's rows, and the states of all ranks. Collective."""
        return owned(self._snapshot(None))

    def left(self) -> Snapshot | None:
        """The same of an elastic run that is over here, in memory that nobody changes any more; None where it began."""
        if self._states_2SU is None:
            return self._with_weights(self._entered) if self._entered else None
        return self._snapshot(None)

    def _gathered(self, state: State) -> NDArray[np.float32]:
        """The states of all ranks, [2, S, U]. Collective."""
        return np.concatenate(self._adapter.job.gather(self._adapter.state_to_numpy(state)), axis=1)

    def _snapshot(self, validation: Evaluation | None) -> Snapshot:
        """In memory that the next step may change."""
        progress = Progress(
            epoch=self._cursor.epoch,
            position=self._cursor.position(),
            micro_batches=self._cursor.micro_batches_read,
            tokens=self.tokens,
            seconds=self._seconds,
            text=self._dataset.fingerprint,
            lstm_state_2SU=self._gathered(self._state) if self._states_2SU is None else self._states_2SU,
            loss_scale=self._loss_scale and replace(self._loss_scale),
            schedule=replace(self._schedule),
            validation_loss=validation.criterion if validation else None,
            best_validation_loss=self.validations.best,
            validations_since_best=self.validations.since_best,
            averaging=self.validations.averages.averaging,
            settings=to_dict(self._config),
        )
        return self._with_weights(progress)

    def _with_weights(self, progress: Progress) -> Snapshot:
        snapshot = Snapshot(
            step=self.step,
            model=self._config.model,
            optimizer=self._config.optimizer,
            weights=self._adapter.weights(copy=False),
            optimizer_state=self._adapter.optimizer_state(copy=False),
            memory=self._adapter.memory(copy=False),
            tokenizer=self._dataset.tokenizer,
            progress=progress,
        )
        return self.validations.averages.kept(snapshot)

    def _checkpoint(self, validation: Evaluation | None) -> None:
        """Write what the run is after this step. Collective."""
        if self._saved_step == self.step:
            return
        self._saved_step = self.step
        began = time.perf_counter()
        self._local.average_all(self.step)
        self._late.catch_up(self.step)
        snapshot = self._snapshot(validation)
        parts.save(self._adapter, snapshot, self.outlets.writer)
        self._checkpoint_seconds += time.perf_counter() - began
