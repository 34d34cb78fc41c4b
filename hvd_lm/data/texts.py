"""The tokens that a run trains on or a model is judged by, from plain texts or from prepared folders."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hvd_lm.config import VALIDATION_SHARE, DataConfig
from hvd_lm.data import shards
from hvd_lm.data import tokenizer as tokenizers
from hvd_lm.data.corpus import blocks_of, chunks_of
from hvd_lm.data.counts import CountedTokens, TextCounts, warn_of_long_words
from hvd_lm.data.once import Made, made_once
from hvd_lm.data.shards import Prepared, ShardedTokens, Split, number_format
from hvd_lm.data.splits import length, share_out, split_blocks
from hvd_lm.data.streams import Tokens
from hvd_lm.data.tokenizer import Tokenizer, train_tokenizer
from hvd_lm.data.walk import STANDARD_INPUT, TextFile, find_files
from hvd_lm.errors import ConfigError, DataError
from hvd_lm.job.launcher import launched_size
from hvd_lm.job.messages import warn


def identify(tokens: Tokens, hashed: Hash) -> None:
    """Add what tells `tokens` from others, in whatever numbers they are held, without reading shards again."""
    if isinstance(tokens, ShardedTokens):
        hashed.update(tokens.digest())
        return
    for start in range(0, len(tokens), _PIECE):
        hashed.update(tokens[start : start + _PIECE].astype(np.int32))


_PIECE = 1 << 20
"""Tokens that are hashed at a time."""


class Hash(Protocol):
    """As hashlib makes them."""

    def update(self, data: Any, /) -> None: ...


_NONE = np.empty(0, np.int32)


@dataclass(frozen=True)
class Texts:
    """The tokens of a run."""

    tokenizer: Tokenizer
    training: Tokens
    validation: Tokens
    test: Tokens = field(default_factory=lambda: _NONE)
    """Of a prepared folder that has one: judged when the run is done, so no part of what it goes on with."""

    @cached_property
    def fingerprint(self) -> str:
        """Equal on all ranks, or they would train on different texts."""
        return _fingerprint(self.training, self.validation, begun_with=self.tokenizer.to_json())

    @property
    def test_fingerprint(self) -> str:
        """Of the test split alone."""
        return _fingerprint(self.test)


def _fingerprint(*texts: Tokens, begun_with: str = "") -> str:
    hashed = hashlib.sha256(begun_with.encode())
    for tokens in texts:
        hashed.update(len(tokens).to_bytes(8, "little"))
        identify(tokens, hashed)
    return hashed.hexdigest()


def read_texts(data: DataConfig, vocabulary_size: int | None, data_ranks: int = 1) -> Texts:
    """Read, split and tokenize the texts of a run on so many data ranks, or open the prepared folder that ``--data`` names.

    Raises DataError if a text is missing, empty or too short; ConfigError for a vocabulary size that does not fit.
    """
    if prepared := open_prepared(data.data):
        _check_vocabulary(prepared, vocabulary_size)
        texts = Texts(prepared.tokenizer, prepared.split("training"), _NONE, prepared.tokens.get("test", _NONE))
        if data.validation_share != 0:
            texts = replace(texts, validation=prepared.tokens.get("validation", _NONE))
        elsewhere = f"{prepared.folder} has its own validation split, or none"
    else:
        texts = _read_plain(data, vocabulary_size)
        elsewhere = "--validation-data is given"
    if data.validation_share and (prepared or data.validation_data):
        warn(f"--validation-share {data.validation_share} has no effect: {elsewhere}")
    if data.validation_data:
        held_out = open_prepared(data.validation_data)
        read = _of_split(held_out, texts.tokenizer, "validation") if held_out else _of_texts(data.validation_data, texts.tokenizer)
        texts = replace(texts, validation=read[0])
    _check_length(texts.training, data.batch_size, data_ranks)
    return texts


def _read_plain(data: DataConfig, vocabulary_size: int | None) -> Texts:
    """A plain text as `prepare` with words would cut and tokenize it, without a test split."""
    _refuse_what_ranks_cannot_share(data.data)
    share = 0.0 if data.validation_data else VALIDATION_SHARE if data.validation_share is None else data.validation_share
    cut = _cut_in_tokens if data.validation_cut == "tokens" else _cut_in_lines
    made = _made_once(data.data, [data.validation_cut, share, vocabulary_size], lambda: cut(data.data, share, vocabulary_size))
    if counts := made.words["counts"]:
        warn_of_long_words(TextCounts(**counts), "word")
    return Texts(tokenizers.from_json(made.words["tokenizer"]), made.arrays["training"], made.arrays["validation"])


def _made_once(paths: Sequence[Path], of_settings: Any, make: Callable[[], Made]) -> Made:
    return made_once(find_files(paths), of_settings, make) if paths else make()


def _cut_in_tokens(paths: Sequence[Path], share: float, vocabulary_size: int | None) -> Made:
    """As older versions did: the vocabulary has the words of all of the text."""
    blocks = list(blocks_of(chunks_of(paths)))
    tokenizer = train_tokenizer(blocks, "word", vocabulary_size)
    tokens = _joined(tokenizer.encode_blocks(_letting_go(blocks)), tokenizer)
    split = len(tokens) - int(len(tokens) * share)
    return _made(tokenizer, tokens[:split], tokens[split:])


def _cut_in_lines(paths: Sequence[Path], share: float, vocabulary_size: int | None) -> Made:
    blocks = list(blocks_of(chunks_of(paths)))
    total = sum(length(block, "word") for block in blocks)
    parts: dict[Split, list[str]] = {"training": [], "validation": []}
    for name, text in split_blocks(blocks, share_out(total, {"validation": share}), "word"):
        parts[name].append(text)
    tokenizer = _train_tokenizer(parts["training"], blocks, vocabulary_size)
    del blocks
    counted = CountedTokens(_letting_go(parts["training"]), tokenizer)
    training = _joined(counted, tokenizer)
    validation = _joined(tokenizer.encode_blocks(_letting_go(parts["validation"])), tokenizer)
    return _made(tokenizer, training, validation, counted.counts)


def _made(
    tokenizer: Tokenizer, training: NDArray[np.integer], validation: NDArray[np.integer], counts: TextCounts | None = None
) -> Made:
    words = {"tokenizer": tokenizer.to_json(), "counts": asdict(counts) if counts else None}
    return Made({"training": training, "validation": validation}, words)


def _letting_go(blocks: list[str]) -> Iterator[str]:
    """The blocks, none of which is held longer than it is needed."""
    blocks.reverse()
    while blocks:
        yield blocks.pop()


def _joined(arrays: Iterable[NDArray[np.int32]], tokenizer: Tokenizer) -> NDArray[np.integer]:
    """In the smallest numbers, and never twice: it is all of a text."""
    dtype, joined = number_format(tokenizer.vocabulary_size), bytearray()
    for ids in arrays:
        joined += ids.astype(dtype).data
    return np.frombuffer(joined, dtype)


def _train_tokenizer(training: Sequence[str], whole: Sequence[str], vocabulary_size: int | None) -> Tokenizer:
    """As `train_tokenizer`; its error tells where the words are that the training part of the whole text lacks."""
    try:
        return train_tokenizer(training, "word", vocabulary_size)
    except ConfigError as error:
        with suppress(ConfigError):
            train_tokenizer(whole, "word", vocabulary_size)
            hint = "runs of older versions counted the validation part too: --validation-cut tokens goes on with them"
            error = ConfigError(f"{error}; {hint}")
        raise error from None


def read_tokens(paths: Sequence[Path], tokenizer: Tokenizer, split: Split | None = None) -> tuple[Tokens, TextCounts]:
    """The tokens of texts (the embedded corpus if none), or of a split (None: test) of a prepared folder; how much text they are.

    Raises DataError if there is none, or a prepared folder has another tokenizer; ConfigError for a split of plain texts.
    """
    if prepared := open_prepared(paths):
        return _of_split(prepared, tokenizer, split or "test")
    if split is not None:
        raise ConfigError(f"--split {split} needs a folder that hvd-lm prepare made: leave it away for plain text")
    return _of_texts(paths, tokenizer)


def _of_split(prepared: Prepared, tokenizer: Tokenizer, split: Split) -> tuple[Tokens, TextCounts]:
    if prepared.tokenizer.to_json() != tokenizer.to_json():
        raise DataError(
            f"{prepared.folder} was prepared with another tokenizer: prepare it with --tokenizer-file, or give plain text"
        )
    return prepared.split(split), prepared.counts[split]


def _of_texts(paths: Sequence[Path], tokenizer: Tokenizer) -> tuple[Tokens, TextCounts]:
    _refuse_what_ranks_cannot_share(paths)

    def make() -> Made:
        counted = CountedTokens(blocks_of(chunks_of(paths)), tokenizer)
        tokens = _joined(counted, tokenizer)
        return Made({"tokens": tokens}, asdict(counted.counts))

    made = _made_once(paths, tokenizer.to_json(), make)
    return made.arrays["tokens"], TextCounts(**made.words)


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


def _refuse_what_ranks_cannot_share(paths: Sequence[Path]) -> None:
    """Raises DataError for standard input, and on several ranks for pipes, of which each would get a part or wait for ever."""
    for path in paths:
        if path == STANDARD_INPUT or (launched_size() > 1 and path.is_fifo()):
            name = TextFile(path)
            raise DataError(f"{name} cannot be shared by ranks: hvd-lm prepare reads it, and every rank the folder it makes")


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
