"""Prepared texts on disk: token shards read through memory maps, one tokenizer, and a header that tells what they are.

    DIR/
        prepared.json           format, tokenizer, number format, and for every split its counts, shards and their SHA-256
        tokenizer.json          HF tokenizers
        training-00000.bin      token ids, one after the other: uint8 for up to 256 tokens, little-endian uint16 for up to 65,536,
                                else uint32
        validation-00000.bin ...

The header has a checksum of its own.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from hvd_lm.checkpoint.files import checksum, sha256
from hvd_lm.conform import count
from hvd_lm.data import tokenizer as tokenizers
from hvd_lm.data.counts import TextCounts
from hvd_lm.data.tokenizer import Tokenizer
from hvd_lm.errors import CheckpointError, DataError, HvdLmError, why
from hvd_lm.job.launcher import launched_local_rank
from hvd_lm.plain_values import from_dict

Split = Literal["training", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

FORMAT_VERSION = 1
HEADER = "prepared.json"
SHARD_TOKENS = 1 << 28
"""Tokens in a full shard: half a gigabyte of uint16."""

_NUMBER_FORMATS = ("|u1", "<u2", "<u4")
_PIECE = 1 << 24
"""Bytes of a shard that are checked at once."""
_DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, HvdLmError)


@dataclass(frozen=True)
class Shard:
    """A file of tokens."""

    file: str
    tokens: int
    sha256: str


class ShardedTokens:
    """The tokens of a split, ``[tokens]``, read where they are sliced and nowhere else."""

    def __init__(self, shards: Iterable[NDArray[np.integer]], checksums: Iterable[str] = ()) -> None:
        self._shards = list(shards)
        self._checksums = list(checksums)
        self._starts = np.cumsum([0, *map(len, self._shards)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def digest(self) -> bytes:
        """The same for the same shards."""
        return "".join(self._checksums).encode()

    def __getitem__(self, where: slice, /) -> NDArray[np.integer]:
        start, stop, step = where.indices(len(self))
        assert step == 1, "tokens are read in their order"
        parts = []
        shard = bisect_right(self._starts, start) - 1
        while start < stop:
            first = int(self._starts[shard])
            parts.append(self._shards[shard][start - first : stop - first])
            start = int(self._starts[shard + 1])
            shard += 1
        return parts[0] if len(parts) == 1 else np.concatenate(parts) if parts else np.empty(0, np.int32)


@dataclass(frozen=True)
class Prepared:
    """A prepared text."""

    folder: Path
    tokenizer: Tokenizer
    tokens: dict[Split, ShardedTokens]
    counts: dict[Split, TextCounts]
    checksum: str
    """Of the header, and through it of every file."""

    def split(self, name: Split) -> ShardedTokens:
        """Raises DataError if there is no such split."""
        if name not in self.tokens:
            raise DataError(f"{self.folder} has no {name} split: it has {', '.join(self.tokens)}")
        return self.tokens[name]


class ShardWriter:
    """Writes the tokens of one split as they come."""

    def __init__(self, folder: Path, split: Split, vocabulary_size: int, shard_tokens: int = SHARD_TOKENS) -> None:
        self._folder, self._split, self._shard_tokens = folder, split, shard_tokens
        self._dtype = number_format(vocabulary_size)
        self.shards: list[Shard] = []

    def write_all(self, arrays: Iterable[NDArray[np.int32]]) -> None:
        """Write the tokens of `arrays`, one after the other."""
        pending = iter(arrays)
        rest: NDArray[np.int32] | None = None
        more = True
        while more:
            name = _shard_name(self._split, len(self.shards))
            room, hashed = self._shard_tokens, hashlib.sha256()
            with (self._folder / name).open("wb") as file:
                while room:
                    rest = next(pending, None) if rest is None else rest
                    if rest is None:
                        more = False
                        break
                    data = rest[:room].astype(self._dtype).tobytes()
                    file.write(data)
                    hashed.update(data)
                    rest, room = (rest[room:], 0) if len(rest) > room else (None, room - len(rest))
            tokens = self._shard_tokens - room
            if tokens or not self.shards:
                self.shards.append(Shard(name, tokens, hashed.hexdigest()))
            else:
                (self._folder / name).unlink()


def _shard_name(split: Split, index: int) -> str:
    return f"{split}-{index:05d}.bin"


def number_format(vocabulary_size: int) -> np.dtype[Any]:
    """The smallest that holds every token id."""
    return next(dtype for dtype in map(np.dtype, _NUMBER_FORMATS) if vocabulary_size <= 1 << 8 * dtype.itemsize)


def write_header(folder: Path, tokenizer: Tokenizer, splits: dict[Split, tuple[TextCounts, list[Shard]]]) -> None:
    """Complete a prepared folder: its tokenizer and its header."""
    tokenizer.save(folder / "tokenizer.json")
    description: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "tokenizer": {
            "kind": tokenizer.kind,
            "vocabulary_size": tokenizer.vocabulary_size,
            "sha256": sha256(folder / "tokenizer.json"),
        },
        "number_format": number_format(tokenizer.vocabulary_size).str,
        "splits": {
            name: asdict(counts) | {"unknown_share": counts.unknown_share, "shards": [asdict(shard) for shard in shards]}
            for name, (counts, shards) in splits.items()
        },
    }
    text = json.dumps(description | {"checksum": checksum(description)}, indent=2)
    (folder / HEADER).write_text(text + "\n", encoding="utf-8")


def is_prepared(path: Path) -> bool:
    """Whether `path` is a folder that ``hvd-lm prepare`` made. Raises DataError if it may not be looked into."""
    try:
        return (path / HEADER).is_file()
    except OSError as error:
        raise DataError(f"cannot read {path}: {why(error, path / HEADER)}") from error


def load(folder: Path) -> Prepared:
    """Open a prepared folder, whoever made it, and check every file in it; shards by one rank of each host.

    Raises DataError naming what is missing or not as it was written.
    """
    try:
        description = json.loads((folder / HEADER).read_text(encoding="utf-8"))
        version = description["format_version"]
        if version != FORMAT_VERSION:
            raise DataError(f"it has format {version}, this hvd_lm reads {FORMAT_VERSION}")
        stated = description.pop("checksum")
        if stated != checksum(description):
            raise DataError(f"{HEADER} was altered")
        tokenizer = tokenizers.load(folder / "tokenizer.json")
        if sha256(folder / "tokenizer.json") != description["tokenizer"]["sha256"]:
            raise DataError("tokenizer.json was altered")
        if description["number_format"] not in _NUMBER_FORMATS:
            raise DataError(f"its number format is none of {', '.join(_NUMBER_FORMATS)}")
        dtype = np.dtype(description["number_format"])
        tokens: dict[Split, ShardedTokens] = {}
        counts: dict[Split, TextCounts] = {}
        for name in SPLITS:
            if name not in description["splits"]:
                continue
            split = dict(description["splits"][name])
            shards = [_shard(name, index, shard) for index, shard in enumerate(split.pop("shards"))]
            split.pop("unknown_share")
            counts[name] = from_dict(TextCounts, {key: count(value) for key, value in split.items()})
            if counts[name].tokens != sum(shard.tokens for shard in shards):
                raise DataError(f"the shards of its {name} split hold other than {counts[name].tokens} tokens")
            arrays = [_open(folder / shard.file, shard, dtype, tokenizer.vocabulary_size) for shard in shards]
            tokens[name] = ShardedTokens(arrays, [shard.sha256 for shard in shards])
        return Prepared(folder, tokenizer, tokens, counts, stated)
    except _DAMAGE as error:
        kind = "" if isinstance(error, (DataError, CheckpointError)) else f"{type(error).__name__}: "
        reason = f"{kind}{' '.join(str(error).split())}"
        raise DataError(f"the prepared text {folder} cannot be used ({reason}): prepare it again") from error


def _shard(split: Split, index: int, description: dict[str, Any]) -> Shard:
    """Raises DataError for any file but the one that `ShardWriter` makes."""
    shard = from_dict(Shard, description)
    count(shard.tokens)
    if shard.file != _shard_name(split, index):
        raise DataError(f"{shard.file!r} is not the name of shard {index} of its {split} split")
    return shard


def _open(path: Path, shard: Shard, dtype: np.dtype[Any], vocabulary_size: int) -> NDArray[np.integer]:
    if not path.is_file() or path.stat().st_size != shard.tokens * dtype.itemsize:
        raise DataError(f"{shard.file} was altered or truncated")
    if launched_local_rank() == 0:
        _check_shard(path, shard, dtype, vocabulary_size)
    return np.memmap(path, dtype, "r") if shard.tokens else np.empty(0, np.int32)


def _check_shard(path: Path, shard: Shard, dtype: np.dtype[Any], vocabulary_size: int) -> None:
    """Reads a shard once, which also brings it into memory before training needs it."""
    hashed, largest = hashlib.sha256(), 0
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            hashed.update(piece)
            largest = max(largest, int(np.frombuffer(piece, dtype).max()))
    if hashed.hexdigest() != shard.sha256:
        raise DataError(f"{shard.file} was altered or truncated")
    if largest >= vocabulary_size:
        raise DataError(f"{shard.file} holds token {largest}, but the vocabulary has {vocabulary_size}")
