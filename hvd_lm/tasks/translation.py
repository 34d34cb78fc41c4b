"""``hvd-lm translate train``: a model that goes on from a text with its translation.

It is an LSTM language model of source, separator and translation, whose loss is of the translation alone (Sutskever et al. 2014,
arXiv:1409.3215, with one network for both sides), which attends to the states of the source (Luong et al. 2015, arXiv:1508.04025).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from hvd_lm.adapters.base import Adapter
from hvd_lm.config import DataConfig, ModelConfig
from hvd_lm.data import tokenizer as tokenizers
from hvd_lm.data.examples import ExampleBatches, Examples
from hvd_lm.data.pairs import COLUMNS, Pair, read_pairs
from hvd_lm.data.tokenizer import KINDS, Tokenizer, TokenizerKind, train_tokenizer
from hvd_lm.errors import DataError, require
from hvd_lm.evaluation.figures import Evaluation
from hvd_lm.job.launcher import launched_rank
from hvd_lm.job.messages import warn
from hvd_lm.paths import make_paths
from hvd_lm.tasks.example_run import ExampleRun
from hvd_lm.tasks.held_apart import training_and_validation
from hvd_lm.tasks.pair_examples import examples, texts_of
from hvd_lm.training.example_dataset import ExampleDataset
from hvd_lm.training.loop import TrainingResult, train_on

_READ_TOGETHER = 64
"""Pairs of a rank that validate side by side."""


@dataclass(frozen=True)
class TranslateTrainConfig(ExampleRun):
    """Train a model that translates, alone or on every rank of a horovodrun job."""

    source: tuple[Path, ...]
    """Texts to translate, one a line; or, without --target, tables (.tsv, .csv, .jsonl) with a column of each side."""
    target: tuple[Path, ...] = ()
    """Their translations, line by line: as many files."""
    validation_source: tuple[Path, ...] = ()
    """As --source, to validate on. None: a part of --source, see --validation-share."""
    validation_target: tuple[Path, ...] = ()
    """As --target."""
    validation_share: float = 0.02
    """Share of the pairs, drawn by chance, kept for validation unless --validation-source is given; 0 for none."""
    source_column: str = COLUMNS[0]
    """Tables: column of the text, its name, or its number from 1 in rows that have no header."""
    target_column: str = COLUMNS[1]
    """Tables: column of its translation."""
    out: Path = field(default=Path("translation"), kw_only=True)
    """Folder of the run, as of hvd-lm train."""
    tokenizer: TokenizerKind = "bpe"
    """What a token is, on both sides: word, char, byte or bpe, as of hvd-lm prepare. Its vocabulary is that of the pairs."""
    tokenizer_file: Path | None = None
    """Take the tokenizer of another run or of a prepared folder (tokenizer.json) in place of one of these pairs."""
    sequence_length: int = 200
    """Most tokens of a text and its translation together (T): longer pairs are left out."""
    reverse_source: bool = False
    """Read a source from its end, so that its beginning is near that of its translation (Sutskever et al. 2014)."""
    attention: bool = True
    """Let a translation attend to the states of its source. Without, it knows them by the last state alone."""
    model: ModelConfig = field(default_factory=lambda: ModelConfig(embedding_size=256, hidden_size=512, layers=1, dropout=0.3))

    def __post_init__(self) -> None:
        super().__post_init__()
        make_paths(self, "source", "target", "validation_source", "validation_target", "tokenizer_file")
        require(bool(self.source), "--source needs texts to translate")
        require(bool(self.validation_source) or not self.validation_target, "--validation-target needs --validation-source")
        require(0.0 <= self.validation_share < 1.0, f"--validation-share must be in [0, 1), not {self.validation_share}")
        require(self.sequence_length >= 3, f"--sequence-length must be at least 3, not {self.sequence_length}")
        require(self.tokenizer in KINDS, f"--tokenizer must be one of {', '.join(KINDS)}, not {self.tokenizer}")
        require(
            not self.model.classes and self.model.source_end is None,
            "--classes, --source-end, --source-reversed and --source-attention are set by the command: leave them away",
        )


def train(config: TranslateTrainConfig) -> TrainingResult:
    """Train a model that translates; rank 0 writes the run. Collective.

    Raises what `hvd_lm.train` raises; DataError for pairs that are missing, damaged or too long.
    """
    training, validation = _read(config)
    tokenizer = _tokenizer(config, training)
    model = replace(
        config.model,
        vocabulary_size=tokenizer.vocabulary_size,
        source_end=tokenizer.end_of_line_id,
        source_reversed=config.reverse_source,
        source_attention=config.attention,
    )
    parts = [examples(part, tokenizer, config.sequence_length, reverse=config.reverse_source) for part in (training, validation)]
    left_out = len(training) + len(validation) - sum(map(len, parts))
    if not len(parts[0]):
        raise DataError(f"no pair has at most {config.sequence_length} tokens: raise --sequence-length")
    if left_out and launched_rank() == 0:
        warn(f"{left_out:,} pairs of more than {config.sequence_length} tokens are left out (--sequence-length)")
    dataset = ExampleDataset(tokenizer, parts[0], {"validation": parts[1]}, judged)
    data = DataConfig(config.source, config.validation_source, batch_size=config.batch_size, sequence_length=config.sequence_length)
    return train_on(lambda _: dataset, config.run_config(model, data))


def _read(config: TranslateTrainConfig) -> tuple[Sequence[Pair], Sequence[Pair]]:
    columns = config.source_column, config.target_column
    pairs = read_pairs(config.source, config.target, columns)
    validating = read_pairs(config.validation_source, config.validation_target, columns) if config.validation_source else None
    return training_and_validation(pairs, validating, config.validation_share, "pair")


def _tokenizer(config: TranslateTrainConfig, training: Sequence[Pair]) -> Tokenizer:
    size = config.model.vocabulary_size
    if config.tokenizer_file is None:
        return train_tokenizer(texts_of(training), config.tokenizer, size)
    found = tokenizers.load(config.tokenizer_file)
    require(
        size in (None, found.vocabulary_size),
        f"--tokenizer-file {config.tokenizer_file} has {found.vocabulary_size} tokens: leave --vocabulary-size {size} away",
    )
    return found


def judged(adapter: Adapter, pairs: Examples) -> Evaluation:
    """Cross-entropy of translations under the model, per token. Collective."""
    topology = adapter.job.topology
    batches = ExampleBatches(pairs, 0, batch_size=_READ_TOGETHER, data_rank=topology.reader, data_size=topology.readers)
    total = 0.0
    with adapter.job.trouble.noted():
        for index in range(batches.micro_batches):
            adapter.job.watch.sign()
            batch = batches.micro_batch(index)
            losses_TB = adapter.evaluate(batch.inputs_TB, batch.targets_TB, adapter.zero_state(_READ_TOGETHER)).losses_TB
            total += float(losses_TB.sum(dtype=np.float64))
    tokens = sum(window.target_count for window in batches.windows(1))
    return Evaluation(float(adapter.job.sum(np.array([total]))[0]) / tokens, tokens)
