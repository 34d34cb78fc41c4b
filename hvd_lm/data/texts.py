"""The tokens that a run trains on or a model is judged by, from plain texts or from prepared folders."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from hvd_lm.config import DataConfig
from hvd_lm.data import shards
from hvd_lm.data.corpus import STANDARD_INPUT, blocks_of, embedded_corpus, find_files, read_files, read_text
from hvd_lm.data.counts import CountedTokens, TextCounts
from hvd_lm.data.shards import Prepared, ShardedTokens, Split
from hvd_lm.data.streams import Tokens
from hvd_lm.data.tokenizer import Tokenizer, train_word_level
from hvd_lm.errors import ConfigError, DataError


@dataclass(frozen=True)
class Texts:
    """The tokens of a run."""

    tokenizer: Tokenizer
    training: Tokens
    validation: Tokens

    @cached_property
    def fingerprint(self) -> str:
        """Equal on all ranks, or they would train on different texts."""
        hashed = hashlib.sha256(self.tokenizer.to_json().encode())
        for tokens in (self.training, self.validation):
            hashed.update(len(tokens).to_bytes(8, "little"))
            hashed.update(tokens.digest() if isinstance(tokens, ShardedTokens) else tokens[:].tobytes())
        return hashed.hexdigest()


def read_texts(data: DataConfig, vocabulary_size: int | None, data_ranks: int = 1) -> Texts:
    """Read, split and tokenize the texts of a run on so many data ranks, or open the prepared folder that ``--data`` names.

    Raises DataError if a text is missing, empty or too short; ConfigError for a vocabulary size that does not fit.
    """
    training: Tokens
    validation: Tokens
    if prepared := open_prepared(data.data):
        _check_vocabulary(prepared, vocabulary_size)
        tokenizer, training = prepared.tokenizer, prepared.split("training")
        validation = prepared.tokens.get("validation", np.empty(0, np.int32))
    else:
        _refuse_standard_input(data.data)
        text = read_text(data.data)
        tokenizer = train_word_level(text, vocabulary_size)
        tokens = tokenizer.encode(text)
        split = len(tokens) if data.validation_data else len(tokens) - int(len(tokens) * data.validation_share)
        training, validation = tokens[:split], tokens[split:]
    if data.validation_data:
        validation, _ = read_tokens(data.validation_data, tokenizer, "validation")
    _check_length(training, data.batch_size, data_ranks)
    return Texts(tokenizer, training, validation)


def read_tokens(paths: Sequence[Path], tokenizer: Tokenizer, split: Split = "test") -> tuple[Tokens, TextCounts]:
    """The tokens of texts (the embedded corpus if none), or of a split of a prepared folder; and how much text they are.

    Raises DataError if there is none, or a prepared folder has another tokenizer.
    """
    if prepared := open_prepared(paths):
        if prepared.tokenizer.to_json() != tokenizer.to_json():
            raise DataError(
                f"{prepared.folder} was prepared with another tokenizer: prepare it with --tokenizer-file, or give plain text"
            )
        return prepared.split(split), prepared.counts[split]
    _refuse_standard_input(paths)
    chunks = read_files(find_files(paths)) if paths else [embedded_corpus()]
    counted = CountedTokens(blocks_of(chunks), tokenizer)
    tokens = np.concatenate([np.empty(0, np.int32), *counted])
    return tokens, counted.counts


def open_prepared(paths: Sequence[Path]) -> Prepared | None:
    """The prepared folder that `paths` name, or None if they are plain texts.

    Raises DataError if it is damaged, or one among several.
    """
    prepared = next((path for path in paths if shards.is_prepared(path)), None)
    if prepared is None:
        return None
    if len(paths) > 1:
        raise DataError(f"{prepared} is a prepared text, which cannot be joined with others: prepare them together")
    return shards.load(prepared)


def _refuse_standard_input(paths: Sequence[Path]) -> None:
    if STANDARD_INPUT in paths:
        raise DataError("standard input cannot be shared by ranks: hvd-lm prepare reads it, and every rank the folder it makes")


def _check_vocabulary(prepared: Prepared, wanted: int | None) -> None:
    has = prepared.tokenizer.vocabulary_size
    if wanted not in (None, has):
        raise ConfigError(
            f"{prepared.folder} has a vocabulary of {has}, not {wanted}: leave --vocabulary-size away, or prepare anew"
        )


def _check_length(tokens: Tokens, batch_size: int, data_ranks: int) -> None:
    if len(tokens) < data_ranks * batch_size:
        raise DataError(
            f"the training text has {len(tokens)} tokens, fewer than the {data_ranks * batch_size} streams of "
            f"{data_ranks} data rank(s) x --batch-size {batch_size}: give more text or a smaller batch"
        )
