"""The micro-batches of a window on their way through the adapter, one after the other."""

from __future__ import annotations

import time

from hvd_lm.adapters.base import Adapter, State
from hvd_lm.config import DataConfig, ModelConfig
from hvd_lm.data.sources import MicroBatch, Window
from hvd_lm.errors import DataError
from hvd_lm.model.candidates import candidates
from hvd_lm.model.noise import step_noise, weight_masks
from hvd_lm.training.cursor import Cursor, Masks
from hvd_lm.training.noise_scale import NoiseScale


def sharing(data: DataConfig, backward_tokens: int) -> int:
    """How many micro-batches share a backward, in a window that has as many."""
    return max(1, backward_tokens // (data.batch_size * data.sequence_length))


class Accumulation:
    """Reads what is to be accumulated, and has the adapter accumulate it."""

    def __init__(
        self, adapter: Adapter, model: ModelConfig, data: DataConfig, backward_tokens: int, seed: int, noise_scale: NoiseScale
    ) -> None:
        """Micro-batches of up to `backward_tokens` together share one backward; `seed` is that of sampled words, and of the noise
        of a step. The `noise_scale` is told of the first one where it is due, which then has a backward of its own."""
        self._adapter, self._model, self._data, self._seed = adapter, model, data, seed
        self._together = sharing(data, backward_tokens)
        self._noise_scale = noise_scale

    def run(self, window: Window, cursor: Cursor, state: State, *, weight: float, step: int) -> tuple[State, float]:
        """Forward and backward of all micro-batches of `window`, which `cursor` stands before and `state` belongs to; it is that
        of optimizer step `step`.

        Returns the state after them, and seconds that were waited for data. Collective.
        """
        waited, noise = 0.0, step_noise(self._model, step=step, seed=self._seed)
        held = [name for name, share in self._adapter.shares.items() if share.rows]
        self._adapter.drop_weights(weight_masks(self._model, held, step=step, seed=self._seed))
        for index in range(window.start, window.stop):
            asked = time.perf_counter()
            batch, masks = self._read(cursor, index)
            self._adapter.job.watch.sign()
            waited += time.perf_counter() - asked
            left = window.stop - 1 - index
            state = self._adapter.accumulate(
                batch.inputs_TB,
                batch.targets_TB,
                state if cursor.source.carries_state else self._adapter.zero_state(self._data.batch_size),
                weight=weight,
                last=left == 0,
                defer=left % self._together,
                dropout_masks=noise.masks(batch.inputs_TB, masks),
                candidates=candidates(self._model, micro_batch=cursor.micro_batches_read + index - window.start, seed=self._seed),
            )
            if index == window.start and left and self._noise_scale.is_due(step):
                self._noise_scale.note(batch.targets_TB, weight)
        return state, waited

    def _read(self, cursor: Cursor, index: int) -> tuple[MicroBatch, Masks]:
        """The next micro-batch, number `index` of the epoch; one without targets if this rank is in trouble: the others wait for
        its part of the window."""
        trouble = self._adapter.job.trouble
        if trouble.error is None:
            try:
                return cursor.read()
            except OSError as error:
                trouble.note(DataError(f"cannot read the training text: {error}: bring it back, then go on with --resume auto"))
            except Exception as error:
                trouble.note(error)
        return cursor.nothing(index)
