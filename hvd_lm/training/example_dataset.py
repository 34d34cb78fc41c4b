"""Examples that stand alone, as a run learns from them and is judged by them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping

from hvd_lm.adapters.base import Adapter
from hvd_lm.checkpoint.format import Progress
from hvd_lm.config import DataConfig
from hvd_lm.data.examples import ExampleBatches, Examples
from hvd_lm.data.tokenizer import Tokenizer
from hvd_lm.errors import CheckpointError
from hvd_lm.evaluation.figures import Evaluation
from hvd_lm.job.topology import Topology
from hvd_lm.training.dataset import NOWHERE, HeldOut, Rest

Judge = Callable[[Adapter, Examples], Evaluation]
"""What the weights make of examples, the same on all ranks; collective."""


class ExampleDataset:
    """A dataset (hvd_lm.training.dataset), all of which every rank has in memory."""

    def __init__(self, tokenizer: Tokenizer, training: Examples, held_out: Mapping[HeldOut, Examples], judge: Judge) -> None:
        self.tokenizer, self._training, self._held_out, self._judge = tokenizer, training, held_out, judge

    @property
    def fingerprint(self) -> str:
        hashed = hashlib.sha256(self.tokenizer.to_json().encode())
        return _hashed(hashed, self._training, self._held_out.get("validation"))

    @property
    def test_fingerprint(self) -> str:
        return _hashed(hashlib.sha256(), self._held_out.get("test"))

    @property
    def words(self) -> str:
        to_validate = len(self._held_out["validation"]) if self.has("validation") else 0
        return f"{len(self._training):,} examples to train on, {to_validate:,} to validate"

    def has(self, part: HeldOut) -> bool:
        return len(self._held_out.get(part, ())) > 0

    def source(self, epoch: int, data: DataConfig, topology: Topology) -> ExampleBatches:
        return self._batches(epoch, 0, data, topology)

    def windows(self, epochs: range, backward_passes_per_step: int, data: DataConfig, topology: Topology) -> int:
        micro_batches = -(-len(self._training) // (data.batch_size * topology.readers))
        return len(epochs) * -(-micro_batches // backward_passes_per_step)

    def rest(self, progress: Progress, data: DataConfig, topology: Topology) -> Rest:
        position = progress.position
        if [stop for _, stop in position.segments] != [len(self._training)]:
            raise CheckpointError(NOWHERE)
        batches = self._batches(progress.epoch, position.segments[0][0], data, topology)
        return Rest(batches, 0, [None] * (data.batch_size * topology.readers))

    def _batches(self, epoch: int, begin: int, data: DataConfig, topology: Topology) -> ExampleBatches:
        return ExampleBatches(
            self._training, epoch, batch_size=data.batch_size, data_rank=topology.reader, data_size=topology.readers, begin=begin
        )

    def judged(self, part: HeldOut, adapter: Adapter, data: DataConfig) -> Evaluation:  # noqa: ARG002
        return self._judge(adapter, self._held_out[part])


def _hashed(hashed: hashlib._Hash, *parts: Examples | None) -> str:
    for examples in parts:
        for array in (examples.inputs_N, examples.targets_N, examples.starts) if examples else ():
            hashed.update(len(array).to_bytes(8, "little"))
            hashed.update(array.data)
    return hashed.hexdigest()
