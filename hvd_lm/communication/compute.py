"""What a model takes a rank beside the others: seconds of forward, backward and update, timed in the adapter that trains."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from hvd_lm.adapters.base import Adapter, State
from hvd_lm.communication.clock import of_slowest
from hvd_lm.communication.fit import middle_mean
from hvd_lm.communication.link import Compute
from hvd_lm.config import CommunicationConfig, DataConfig, ModelConfig, OptimizerConfig
from hvd_lm.data.sources import MicroBatch
from hvd_lm.model.candidates import candidates
from hvd_lm.model.noise import step_noise, weight_masks
from hvd_lm.model.weights import initial_weights
from hvd_lm.plain_values import to_dict
from hvd_lm.training.accumulation import sharing
from hvd_lm.training.cursor import dropout_noise

_FEWEST, _MOST = 3, 30
"""Windows that are timed, after one that is not."""
_SEED = 1


def micro_batches_together(data: DataConfig, communication: CommunicationConfig) -> int:
    """Micro-batches that share a backward, in a window that has as many."""
    return min(sharing(data, communication.backward_tokens), communication.backward_passes_per_step)


def time_compute(
    adapter: Adapter,
    model: ModelConfig,
    data: DataConfig,
    optimizer: OptimizerConfig,
    communication: CommunicationConfig,
    seconds: float,
) -> tuple[Compute, Callable[[], None]]:
    """Of random words, in about `seconds`; and what does a forward and a backward of a micro-batch once more. Steps are each rank's
    own: nothing is reduced. Collective."""
    job = adapter.job
    together = micro_batches_together(data, communication)
    adapter.communicate(CommunicationConfig(reduce_every=2, backward_tokens=communication.backward_tokens))
    adapter.tells = False
    with job.trouble.noted():
        adapter.build(model, optimizer)
        adapter.load_weights(initial_weights(model, seed=_SEED))
    job.agree()
    timed = _Timed(adapter, model, data)
    rows: list[tuple[float, ...]] = []
    began = time.perf_counter()
    repeats = _FEWEST
    while len(rows) <= repeats:
        rows.append(timed.window(together))
        if len(rows) == 2:
            # The slowest rank's clock, so that all go on for as long.
            elapsed = float(of_slowest(job, time.perf_counter() - began)[0]) / len(rows)
            repeats = int(np.clip(seconds / elapsed, _FEWEST, _MOST))
    # Ranks that share a core take turns: a part is quick where another rank waits, and what counts is the mean of both.
    means = job.gather(middle_mean(np.array(rows[1:])), "all")
    forward, alone, several, update = means[means.sum(axis=1).argmax()].tolist()
    count = _at_least_two(together)
    base, backward = line(alone, several, count)
    found = Compute(
        to_dict(model),
        optimizer.optimizer,
        data.batch_size,
        data.sequence_length,
        count,
        forward,
        backward,
        base,
        update,
    )
    return found, timed.once


def line(alone: float, several: float, count: int) -> tuple[float, float]:
    """What a backward takes however many micro-batches share it, and what it takes for each, where one of a micro-batch takes
    `alone` seconds and one of `count` takes `several`; neither is below 0."""
    each = max(0.0, (several - alone) / (count - 1))
    if each > alone:
        return 0.0, several / count
    return alone - each, each


def _at_least_two(together: int) -> int:
    """Micro-batches in a backward that is timed beside that of one."""
    return max(2, together)


class _Timed:
    """Windows of an adapter by the clock."""

    def __init__(self, adapter: Adapter, model: ModelConfig, data: DataConfig) -> None:
        self._adapter, self._model, self._data = adapter, model, data
        generator = np.random.default_rng(_SEED + adapter.job.topology.rank)
        self._batch = _words(generator, model, data)
        of_activations = dropout_noise(model, _SEED)(
            stream_ids=range(data.batch_size), micro_batch=0, sequence_length=data.sequence_length
        )
        self._masks = step_noise(model, step=1, seed=_SEED).masks(self._batch.inputs_TB, of_activations)
        adapter.drop_weights(weight_masks(model, adapter.shares, step=1, seed=_SEED))
        self._state: State = adapter.zero_state(data.batch_size)

    def window(self, together: int) -> tuple[float, float, float, float]:
        """Seconds of a forward, of the backward of one micro-batch, of that of several that share it, and of the update."""
        # A forward alone is one whose backward waits.
        waiting = _at_least_two(together) - 1
        forward = self._seconds(waiting, defer=waiting) / waiting
        several = max(0.0, self._seconds(1) - forward)
        alone = max(0.0, self._seconds(1) - forward)
        self._accumulate(last=True)
        self._settle()
        began = time.perf_counter()
        self._adapter.step(learning_rate=1e-6, clip=1.0, unscale=1.0)
        self._settle()
        return forward, alone, several, time.perf_counter() - began

    def once(self) -> None:
        """A forward and a backward of one micro-batch, of which nothing travels."""
        self._accumulate()
        self._settle()

    def _seconds(self, micro_batches: int, defer: int = 0) -> float:
        began = time.perf_counter()
        for index in range(micro_batches):
            self._accumulate(defer=max(0, defer - index))
        self._settle()
        return time.perf_counter() - began

    def _accumulate(self, *, defer: int = 0, last: bool = False) -> None:
        self._state = self._adapter.accumulate(
            self._batch.inputs_TB,
            self._batch.targets_TB,
            self._state,
            weight=1e-3,
            last=last,
            defer=defer,
            dropout_masks=self._masks,
            candidates=candidates(self._model, micro_batch=0, seed=_SEED),
        )

    def _settle(self) -> None:
        """A GPU has done what it was given."""
        self._adapter.state_to_numpy(self._state)


def _words(generator: np.random.Generator, model: ModelConfig, data: DataConfig) -> MicroBatch:
    """As frequent as in language (see hvd_lm.model.candidates)."""
    assert model.vocabulary_size is not None
    levels = generator.random((2, data.sequence_length, data.batch_size)) * np.log(model.vocabulary_size + 1)
    inputs_TB, targets_TB = np.minimum(np.expm1(levels).astype(np.int32), model.vocabulary_size - 1)
    return MicroBatch(inputs_TB, targets_TB)
