"""What a run learns from and is judged by, as the training loop sees it: sources of micro-batches, and figures of what is held out.

`TextDataset` is a running text, for language models; `example_dataset.ExampleDataset` is examples that stand alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypedDict

from hvd_lm.adapters.base import Adapter
from hvd_lm.checkpoint.format import Progress
from hvd_lm.config import DataConfig
from hvd_lm.data.sequence_lengths import Begins, random_lengths
from hvd_lm.data.sources import Source
from hvd_lm.data.streams import Streams, continue_streams
from hvd_lm.data.texts import Texts
from hvd_lm.data.tokenizer import Tokenizer
from hvd_lm.errors import CheckpointError
from hvd_lm.evaluation.exact_loss import evaluation_streams, exact_loss
from hvd_lm.evaluation.figures import Evaluation
from hvd_lm.job.topology import Topology

HeldOut = Literal["validation", "test"]

NOWHERE = "the checkpoint says to go on behind the end of the text: take another one"


@dataclass(frozen=True)
class Rest:
    """What is left of an epoch that some ranks, of any number, have begun."""

    source: Source
    """Of this rank."""
    micro_batch: int
    """Of it, to go on with."""
    continued: Sequence[int | None]
    """For each sequence of all ranks, the one among the old whose state it takes; None: it begins with a zero state."""


class Dataset(Protocol):
    """The same on all ranks."""

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def fingerprint(self) -> str:
        """Of what is learned from and what validates: another one cannot be gone on with."""
        ...

    @property
    def test_fingerprint(self) -> str:
        """Of what tests."""
        ...

    @property
    def words(self) -> str:
        """How much it is, for people."""
        ...

    def has(self, part: HeldOut) -> bool:
        """Whether there is anything to judge by."""
        ...

    def source(self, epoch: int, data: DataConfig, topology: Topology) -> Source:
        """Of this rank, for a whole epoch."""
        ...

    def windows(self, epochs: range, backward_passes_per_step: int, data: DataConfig, topology: Topology) -> int:
        """Optimizer steps in whole `epochs`."""
        ...

    def rest(self, progress: Progress, data: DataConfig, topology: Topology) -> Rest:
        """Of the epoch that `progress` is in. Raises CheckpointError, on all ranks alike, if it is nowhere in it."""
        ...

    def judged(self, part: HeldOut, adapter: Adapter, data: DataConfig) -> Evaluation:
        """What the weights make of what is held out, which there is.

        A rank that cannot read it notes that (`job.trouble`). Collective.
        """
        ...


class TextDataset:
    """A text, read in contiguous streams (hvd_lm.data.streams)."""

    def __init__(self, texts: Texts, seed: int) -> None:
        """`seed` is that of random lengths."""
        self._texts, self._seed = texts, seed
        self.tokenizer = texts.tokenizer
        self._held_out = {"validation": texts.validation, "test": texts.test}

    @property
    def fingerprint(self) -> str:
        return self._texts.fingerprint

    @property
    def test_fingerprint(self) -> str:
        return self._texts.test_fingerprint

    @property
    def words(self) -> str:
        return f"text: {len(self._texts.training):,} tokens to train on, {len(self._texts.validation):,} to validate"

    def has(self, part: HeldOut) -> bool:
        return len(self._held_out[part]) > 0

    def source(self, epoch: int, data: DataConfig, topology: Topology) -> Streams:
        return Streams(self._texts.training, **self._cut(epoch, data, topology))

    def windows(self, epochs: range, backward_passes_per_step: int, data: DataConfig, topology: Topology) -> int:
        differ = epochs if data.random_lengths else epochs[:1]
        steps = sum(-(-self.source(epoch, data, topology).micro_batches // backward_passes_per_step) for epoch in differ)
        return steps if data.random_lengths else steps * len(epochs)

    def rest(self, progress: Progress, data: DataConfig, topology: Topology) -> Rest:
        tokens, position = self._texts.training, progress.position
        if position.tokens_read is None or any(stop > len(tokens) for _, stop in position.segments):
            raise CheckpointError(NOWHERE)
        return Rest(*continue_streams(position, tokens, **self._cut(progress.epoch, data, topology)))

    def _cut(self, epoch: int, data: DataConfig, topology: Topology) -> _Cut:
        drawn = random_lengths(data.sequence_length, seed=self._seed, epoch=epoch) if data.random_lengths else None
        return {
            "first_input": self.tokenizer.end_of_line_id,
            "batch_size": data.batch_size,
            "sequence_length": data.sequence_length,
            "data_rank": topology.reader,
            "data_size": topology.readers,
            "begins": drawn,
        }

    def judged(self, part: HeldOut, adapter: Adapter, data: DataConfig) -> Evaluation:
        tokens = self._held_out[part]
        streams = evaluation_streams(adapter, tokens, self.tokenizer.end_of_line_id, data.batch_size, data.sequence_length)
        return Evaluation(exact_loss(adapter, streams) / len(tokens), len(tokens))


class _Cut(TypedDict):
    """How a text is cut into streams, and which of them this rank reads."""

    first_input: int
    batch_size: int
    sequence_length: int
    data_rank: int
    data_size: int
    begins: Begins | None
