"""The PyTorch adapter: a list of stages and a loop over them, an update, and a reducer between the two.

Shapes: T time, B sequences of this rank, V vocabulary, H units of the last layer, U units of all layers side by side.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import horovod.torch as hvd
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hvd_lm.adapters.assembly import Divided, Made, noise_of_stages
from hvd_lm.adapters.base import INCOMPLETE, READ_ONLY, Adapter, Applied, Evaluated, OptimizerState, State, StepResult
from hvd_lm.adapters.pytorch import states
from hvd_lm.adapters.pytorch.compressed import Compressed
from hvd_lm.adapters.pytorch.job import PyTorchJob
from hvd_lm.adapters.pytorch.late import LateUpdate
from hvd_lm.adapters.pytorch.memory import Weight, clear_gradient_rows, to_numpy
from hvd_lm.adapters.pytorch.model_group import ModelGroup
from hvd_lm.adapters.pytorch.optimizer_split import OptimizerSplit
from hvd_lm.adapters.pytorch.reducer import GradientReducer
from hvd_lm.adapters.pytorch.selected import make_compressed
from hvd_lm.adapters.pytorch.stages import Depart, LayerState, Lookup, Output, Stage, make_stages, neighbour
from hvd_lm.adapters.pytorch.stages.sampled_softmax import SampledWords
from hvd_lm.adapters.pytorch.touched_rows import Touched
from hvd_lm.adapters.pytorch.update import DynamicUpdate, Update, make_update, norm_of
from hvd_lm.adapters.pytorch.weight_drop import WeightDrop
from hvd_lm.adapters.pytorch.wire import Wire
from hvd_lm.adapters.waits import Waits
from hvd_lm.job.topology import GroupName
from hvd_lm.model.candidates import Candidates
from hvd_lm.model.cost import multiply_adds
from hvd_lm.model.weights import Array, Weights

_Made = Made[Lookup, Stage, Output | Depart]


class PyTorchAdapter(Adapter):
    """The model in tensors on the job's device. A state is a list: (h, c) of each stage that has one, None of the others."""

    framework = "torch"
    job_class = PyTorchJob
    job: PyTorchJob

    def _make(self) -> None:
        update, self._device, groups = self.update_config, self.job.device, self.job.groups
        self._weights = {name: Weight(*share.shape, device=self._device) for name, share in self.shares.items() if share.rows}
        halves = self.communication.compression == "fp16"
        self._wire = Wire(self._device, halves=halves)
        self._neighbours = {
            side: neighbour(groups[side], self.job.links.get(side), self._device, self._wire)
            for side in ("below", "above")
            if self.is_pipeline and groups[side].communicates
        }
        self._divided = Divided(
            self.places,
            self.shares,
            ModelGroup(groups["model"], self._wire) if groups["model"].communicates and not self.is_pipeline else None,
            **self._neighbours,
        )
        self._weight_drop = WeightDrop(self._weights, self.model.weight_dropout if update else 0.0)
        self._copies: list[_Made] = []
        """The stages, once for each of the backwards that wait in a pipeline: each remembers its micro-batches."""
        self._waiting: list[list[tuple[int, ...]]] = [[]]
        """[T, B] of the micro-batches whose forward is done: those of each backward."""
        self._optimizer_split = OptimizerSplit(self._weights, self.moment_shares, self.job, halves=halves)
        self._update = make_update(update, self._optimizer_split.updated) if update else None
        by_rows = bool(update and update.keeps_absent_rows)
        by_touched = {name: weight for name, weight in self._weights.items() if update and name not in self.selected}
        self._touched = Touched(self.shares, by_touched, self.job, for_update=by_rows)
        self._by_rows = self._touched.by_name if by_rows else {}
        """Parameters of which the touched rows alone are cleared, measured and updated."""
        self._compressed: Compressed | None = None
        if self.compressor and self.remembered:
            ranks, clip = self.job.groups["all"].size, self.clip_of_a_rank
            self._compressed = make_compressed(self.compressor, self.firsts, self.remembered, self._device, ranks, clip)
        self._reducer: GradientReducer | None = None
        if update and self.job.groups["all"].communicates:
            self._reducer = GradientReducer(
                self.shares, self._weights, self._touched, self._optimizer_split, self.job, self.communication, self._compressed
            )
        self._late: LateUpdate | None = None
        if update and self.communication.late_gradients:
            self._late = LateUpdate(self._weights, self._reducer.start if self._reducer else None, self._apply)
        self._waits = Waits(self.job.topology)
        self._sums = torch.zeros(4 + len(self._waits.told), dtype=torch.float64, device=self._device)
        """Of the window: its loss, flags and waits of all ranks, and of those whose activations were beyond what travels."""
        self._complete = False
        """Whether the window has had its last micro-batch."""

    # --- weights, moments, states ------------------------------------------------------------------------

    def set_rows(self, name: str, start: int, values: Array) -> None:
        first = start - self.held[name].rows.start
        rows = slice(first, first + len(values))
        with torch.no_grad():
            self._tensors[name][rows].copy_(torch.from_numpy(values))
        if name in self._weights:
            self._weights_changed()

    @property
    def _memory(self) -> dict[str, Tensor]:
        """What is remembered of compressed gradients, by the names of a checkpoint."""
        return self._compressed.memory if self._compressed else {}

    @property
    def _tensors(self) -> dict[str, Tensor]:
        """All that this rank holds, by the names of a checkpoint."""
        named = {name: weight.data for name, weight in self._weights.items()}
        return named | (self._update.moments if self._update else {}) | self._memory

    def set_applied_steps(self, steps: int, averaged_since: int | None = None) -> None:
        self._trained.applied_steps, self._trained.averaged_since = steps, averaged_since
        self._trained.link()

    def _weights_changed(self) -> None:
        self._weight_drop.weights_changed()
        self._forget_derived()

    def _forget_derived(self) -> None:
        for copy in self._copies:
            for stage in copy.stages:
                stage.weights_changed()

    def _copy(self, number: int) -> _Made:
        while number >= len(self._copies):
            self._copies.append(make_stages(self.model, self._weights | self._weight_drop.stand_ins, self._divided))
        return self._copies[number]

    @property
    def _stages(self) -> list[Stage]:
        return self._copy(0).stages

    def waited_seconds(self) -> float:
        return sum(neighbour.take_waited_seconds() for neighbour in self._neighbours.values())

    def weights(self, *, copy: bool = True) -> Weights:
        return {name: to_numpy(weight, copy=copy) for name, weight in self._weights.items()}

    @property
    def _trained(self) -> Update:
        assert self._update is not None, READ_ONLY
        return self._update

    def optimizer_state(self, *, copy: bool = True) -> OptimizerState:
        return self._trained.state(copy=copy)

    @property
    def applied_steps(self) -> int:
        return self._trained.applied_steps

    def memory(self, *, copy: bool = True) -> dict[str, Array]:
        return {name: to_numpy(tensor, copy=copy) for name, tensor in self._memory.items()}

    def broadcast_state(self) -> None:
        everyone, update = self.job.groups["all"], self._trained
        if not everyone.communicates:
            return
        steps = torch.tensor(update.applied_steps)
        update.applied_steps = int(hvd.broadcast(steps, 0, name="state.applied_steps", process_set=everyone.process_set))
        named = self._tensors
        if not update.applied_steps:
            # Up to two thirds of all that would travel, and one number.
            named = {name: tensor for name, tensor in named.items() if name not in update.moments}
            update.begin()
        self.job.broadcast_rows(named, self.held)
        update.link()
        self._weights_changed()

    def zero_state(self, batch_size: int) -> State:
        return states.zero(self._stages, batch_size, self._device)

    def select_state(self, state: State, sequences: Sequence[int]) -> State:
        return states.select(state, sequences)

    def _state_to_numpy(self, state: State) -> NDArray[np.float32]:
        return states.numpy_of(state, self._stages)

    def _state_from_numpy(self, state_2BU: NDArray[np.float32]) -> State:
        return states.of_numpy(state_2BU, self._stages, self._device)

    # --- a window ----------------------------------------------------------------------------------------

    def drop_weights(self, masks: Mapping[str, NDArray[np.bool_]]) -> None:
        self._weight_drop.drop(masks)

    def accumulate(
        self,
        inputs_TB: NDArray[np.int32],
        targets_TB: NDArray[np.int32],
        state: State,
        *,
        weight: float,
        last: bool,
        defer: int = 0,
        dropout_masks: Sequence[NDArray[np.bool_]] = (),
        candidates: Candidates | None = None,
    ) -> State:
        if self._waiting[-1] and self._waiting[-1][0] != inputs_TB.shape:
            self._end_backward(last=False)
        made = self._copy(len(self._waiting) - 1)
        arrays = noise_of_stages(self.model, self.places, dropout_masks, targets_TB, weight)
        noise = [None if array is None else torch.from_numpy(array).to(self._device) for array in arrays]
        inputs = self._indices(inputs_TB)
        outputs_TBH, state = self._forward(made, inputs, state, noise, keep=1 if last else 1 + defer)
        made.output.keep(outputs_TBH, self._indices(targets_TB), weight, self._sampled(candidates, targets_TB))
        self._waiting[-1].append(inputs_TB.shape)
        if made.lookup:
            self._touched.note_inputs(made.lookup.touched)
        if last or not defer:
            self._end_backward(last=last)
        return state

    def _end_backward(self, *, last: bool) -> None:
        """All micro-batches of a backward are there. It runs, but in a pipeline, where all forwards of a window come first."""
        if not self.is_pipeline:
            self._run_backward(0, last=last)
        elif last:
            count = len(self._waiting)
            for number in range(count):
                self._run_backward(number, last=number == count - 1)
        else:
            self._waiting.append([])
            return
        self._waiting = [[]]

    @torch.no_grad()
    def _forward(
        self, made: _Made, inputs_TB: Tensor, state: State, noise: Sequence[Tensor | None] = (), *, keep: int = 0
    ) -> tuple[Tensor, State]:
        """Outputs of the last stage below the output [T, B, H], and the state after."""
        if self._weight_drop.turn(training=keep > 0):
            self._forget_derived()
        activations, noise_left = inputs_TB, iter(noise)
        after: list[LayerState | None] = []
        for stage, before in zip(made.stages, state, strict=True):
            own = inputs_TB if stage.reads_tokens else next(noise_left, None) if stage.takes_noise else None
            activations, stage_after = stage.forward(activations, before, own, keep=keep)
            after.append(stage_after)
        return activations, after

    @torch.no_grad()
    def _run_backward(self, number: int, *, last: bool) -> None:
        """Of all micro-batches that wait for this one, stage by stage from above.

        With `last`, what is complete travels while the stages below are at work.
        """
        reducer = self._reducer if last else None
        is_local = last and self.communication.is_local(self.applied_steps)
        if last:
            self._touched.inputs_complete(is_local=is_local)
        complete = self._weight_drop.pulling_back(reducer.start if reducer and not self._late else _ignore)
        self._weights_changed()  # what the forwards derived from them leaves room for logits
        made = self._copy(number)
        loss, gradients = made.output.backward()
        if made.output.weights:
            self._touched.note_outputs(made.output.touched)
        self._sums[0] += loss
        if last:
            self._sums[1:] = torch.tensor([*self.job.flags(), *self._waits.told, self._wire.take_beyond()])
            self._complete = True
            self._touched.outputs_complete(is_local=is_local)
        if reducer:
            reducer.start_sums(self._sums, self.applied_steps, tells=self.tells)
        for weight in made.output.weights:
            if not (made.lookup and weight is made.lookup.table):
                complete(weight)
        for stage in reversed(made.stages):
            gradients = stage.backward(gradients, complete)
        if reducer:
            reducer.backward_complete()

    def _sampled(self, candidates: Candidates | None, targets_TB: NDArray[np.int32]) -> SampledWords | None:
        if candidates is None:
            return None
        log_expected = (self._tensor(candidates.log_expected(words)) for words in (candidates.words_S, targets_TB.ravel()))
        return SampledWords(self._indices(candidates.words_S), *log_expected)

    def _indices(self, array: NDArray[np.int32]) -> Tensor:
        return torch.from_numpy(array).to(self._device, torch.int64)

    def step(self, *, learning_rate: float, clip: float | None, unscale: float) -> StepResult:
        self._check_complete("step()")
        if self._reducer:
            self._reducer.finish_sums()
        loss_sum, in_trouble, to_end, *waits, beyond = self._sums.tolist()
        self._waits.hear(waits if self.tells else None)
        trusted = bool(np.isfinite(loss_sum) and not in_trouble and not beyond)
        update = self._late.step if self._late else self._apply
        outcome = update(learning_rate, clip, unscale, trusted=trusted)
        self._begin_window()
        sent, waited = (self._reducer.bytes_sent, self._reducer.waited_seconds) if self._reducer else (0, 0.0)
        self._waits.note(waited)
        flags = int(in_trouble), int(to_end), int(beyond)
        return StepResult(loss_sum, outcome.norm, outcome.applied, *flags, sent, self._waits.figures(), self._waits.step_seconds)

    def _apply(self, learning_rate: float, clip: float | None, unscale: float, *, trusted: bool) -> Applied:
        """The gradients of the weights, which are complete, if the window is `trusted`. Collective."""
        norm = self._global_norm() * unscale
        applied = bool(np.isfinite(norm) and trusted)
        if applied:
            self._weights_changed()
            self._optimizer_split.take_gradients()
            rows = {name: touched.rows() for name, touched in self._by_rows.items()}
            factor = unscale if clip is None or norm <= clip else unscale * clip / norm
            self._trained.apply(learning_rate, factor, rows)
            self._optimizer_split.share_updated()
        if self._compressed and not np.isfinite(norm):
            self._compressed.forget()
        return Applied(norm, applied)

    def catch_up(self, *, apply: bool = True) -> Applied | None:
        return self._late.catch_up(apply=apply) if self._late else None

    def _global_norm(self) -> float:
        """Of the gradients of the window, each parameter counted once."""
        norms: dict[GroupName | None, list[Tensor]] = {}
        for name, gradient in self._complete_gradients():
            if name in self._by_rows:
                gradient = gradient[self._by_rows[name].rows()]
            share, norm = self.moment_shares[name], norm_of(gradient)
            norms.setdefault(share.divided_over, []).append(norm if share.counts else torch.zeros_like(norm))
        return self.joined_norm({over: float(torch.linalg.vector_norm(torch.stack(of))) for over, of in norms.items()})

    def _check_complete(self, caller: str) -> None:
        if not self._complete:
            raise RuntimeError(INCOMPLETE.format(caller))

    def _begin_window(self) -> None:
        for name, touched in self._by_rows.items():
            clear_gradient_rows(self._weights[name], touched.rows())
        for weight in self._weights.values():
            weight.grad = None
        self._sums = torch.zeros_like(self._sums)
        self._complete = False

    def _complete_gradients(self) -> Iterator[tuple[str, Tensor]]:
        """Of the window, each as soon as it is reduced; all at once where they are already."""
        if self._reducer and self._reducer.pending:
            return self._reducer.finish()
        rows_of = self._optimizer_split.rows_of if self._complete else lambda _, gradient: gradient
        return iter([(name, rows_of(name, weight.grad)) for name, weight in self._weights.items() if weight.grad is not None])

    def gradients(self) -> Weights:
        if self._waiting[-1]:
            self._end_backward(last=False)
        return {name: to_numpy(gradient) for name, gradient in self._complete_gradients()}

    # --- dynamic evaluation ------------------------------------------------------------------------------

    def begin_dynamic_evaluation(self, rates: Mapping[str, Array], decays: Mapping[str, Array]) -> None:
        self._dynamic_update = DynamicUpdate(
            (weight, self._tensor(rates[name]), self._tensor(decays[name])) for name, weight in self._weights.items()
        )

    def _tensor(self, array: Array) -> Tensor:
        return torch.tensor(array, device=self._device)

    def dynamic_step(self) -> float:
        self._check_complete("dynamic_step()")
        self._weights_changed()
        self._dynamic_update.apply()
        loss_sum = float(self._sums[0])
        self._begin_window()
        return loss_sum

    # --- reading -----------------------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(self, inputs_TB: NDArray[np.int32], targets_TB: NDArray[np.int32], state: State) -> Evaluated:
        made = self._copy(0)
        outputs_TBH, state = self._forward(made, self._indices(inputs_TB), state)
        losses_N = made.output.losses(outputs_TBH, self._indices(targets_TB).flatten())
        losses_TB = self._of_last_rank(to_numpy(losses_N).reshape(inputs_TB.shape))
        return Evaluated(losses_TB, to_numpy(outputs_TBH), state)

    @torch.no_grad()
    def logits(self, inputs_TB: NDArray[np.int32], state: State) -> tuple[NDArray[np.float32], State]:
        outputs_TBH, state = self._forward(self._copy(0), self._indices(inputs_TB), state)
        return to_numpy(self._whole_output.logits(outputs_TBH.flatten(0, 1))).reshape(*inputs_TB.shape, -1), state

    @torch.no_grad()
    def next_logits(self, inputs_TB: NDArray[np.int32], state: State) -> tuple[NDArray[np.float32], State]:
        with self.job.threads_for(inputs_TB.size * multiply_adds(self.model)):
            outputs_TBH, state = self._forward(self._copy(0), self._indices(inputs_TB), state)
            return to_numpy(self._whole_output.logits(outputs_TBH[-1])), state

    @property
    def _whole_output(self) -> Output:
        output = self._copy(0).output
        assert isinstance(output, Output), "a pipeline gives no logits: read the model on one rank"
        return output


def _ignore(_: nn.Parameter) -> None:
    """Of a backward after which nothing travels."""
