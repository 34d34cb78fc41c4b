"""``hvd-lm prepare``: any text into token shards that training reads without tokenizing again.

    files -> blocks of text -> (1) where the splits end, (2) vocabulary, (3) token ids -> shards

The text is read anew for each pass, so memory does not grow with it; the tokenizers library spreads passes 2 and 3 over the cores.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import NoReturn

import tyro
from tqdm import tqdm

from hvd_lm.checkpoint.files import new_folder
from hvd_lm.config import make_paths, require
from hvd_lm.data import tokenizer as tokenizers
from hvd_lm.data.corpus import STANDARD_INPUT, blocks_of, find_files, read_files
from hvd_lm.data.counts import CountedTokens
from hvd_lm.data.download import PUBLIC_CORPORA, CorpusName, default_folder, fetch
from hvd_lm.data.shards import SPLITS, Prepared, ShardWriter, Split, load, write_header
from hvd_lm.data.tokenizer import TokenizerKind, train_tokenizer
from hvd_lm.errors import ConfigError, DataError


@dataclass(frozen=True)
class PrepareConfig:
    """Turn texts into token shards, once, for any number of trainings."""

    text: tyro.conf.Positional[tuple[Path, ...]] = ()
    """UTF-8 texts: files (also .gz, .xz, .bz2, .zst), folders, globs, or - for standard input."""
    out: Path = Path("prepared")
    """Folder to make: token shards, tokenizer.json, prepared.json. It appears when it is complete."""
    corpus: CorpusName | None = None
    """Download a known public corpus instead of giving texts."""
    tokenizer: TokenizerKind = "word"
    """What a token is: a word between blanks (PTB and WikiText conventions), a character, a byte, or a byte-level BPE unit."""
    tokenizer_file: Path | None = None
    """Use this tokenizer.json, of a prepared folder or a run, instead of making one."""
    vocabulary_size: int | None = None
    """Tokens in the vocabulary: the most frequent of the training split. Unless given: 10000 for word and bpe, all for char, 256
    for byte; fewer if the text yields fewer."""
    validation_data: tuple[Path, ...] = ()
    """Texts of the validation split. None: a share of the text."""
    test_data: tuple[Path, ...] = ()
    """Texts of the test split. None: a share of the text."""
    validation_share: float = 0.05
    """Share of the text, behind the training split, unless --validation-data is given."""
    test_share: float = 0.05
    """Share of the text, at its end, unless --test-data is given."""
    downloads: Path | None = None
    """Where downloaded corpora are kept, and looked for. Unless given: ~/.cache/hvd_lm/corpora."""
    mirror: str | None = None
    """Address of a folder on a web server that holds the files of --corpus, instead of their usual places."""

    def __post_init__(self) -> None:
        make_paths(self, "text", "out", "tokenizer_file", "validation_data", "test_data", "downloads")
        require(bool(self.text) != bool(self.corpus), "give texts to prepare, or --corpus (one of them)")
        require(self.mirror is None or self.corpus is not None, "--mirror needs a --corpus to download")
        require(
            self.vocabulary_size is None or self.vocabulary_size >= 2,
            f"--vocabulary-size must be at least 2, not {self.vocabulary_size}",
        )
        require(
            self.tokenizer_file is None or self.vocabulary_size is None,
            "--tokenizer-file brings its own vocabulary: leave --vocabulary-size away",
        )
        for name in ("validation_share", "test_share"):
            require(0 <= getattr(self, name) < 1, f"--{name.replace('_', '-')} must be in [0, 1), not {getattr(self, name)}")
        require(self.validation_share + self.test_share < 1, "--validation-share and --test-share leave nothing to train on")


def prepare(config: PrepareConfig) -> Prepared:
    """Write the prepared folder ``config.out`` and return it.

    Raises ConfigError or DataError, each with what to do; then nothing is left behind.
    """
    with new_folder(config.out) as staging:
        _prepare(config, staging)
    return load(config.out)


def _prepare(config: PrepareConfig, staging: Path) -> None:
    texts = _texts(config, staging)
    tokenizer = tokenizers.load(config.tokenizer_file) if config.tokenizer_file else None
    kind = tokenizer.kind if tokenizer else config.tokenizer
    ends = _ends(texts["training"], config, texts, kind)
    if tokenizer is None:
        with _progress("vocabulary") as bar:
            training = (text for split, text in _split(_blocks(texts["training"], bar), ends, kind) if split == "training")
            tokenizer = train_tokenizer(training, config.tokenizer, config.vocabulary_size)
    written = {}
    with _progress("tokens") as bar:
        for split, blocks in _splits(texts, ends, kind, bar):
            counted = CountedTokens(blocks, tokenizer)
            writer = ShardWriter(staging, split, tokenizer.vocabulary_size)
            writer.write_all(counted)
            if counted.counts.tokens:
                written[split] = (counted.counts, writer.shards)
            else:
                for shard in writer.shards:
                    (staging / shard.file).unlink()
    if "training" not in written:
        raise DataError("the text is too short for a training split: give more text, or smaller shares for validation and test")
    write_header(staging, tokenizer, written)
    (staging / _SPOOLED).unlink(missing_ok=True)


_SPOOLED = "standard-input"


def _texts(config: PrepareConfig, staging: Path) -> dict[Split, list[Path]]:
    """The files of every split that has its own."""
    if config.corpus:
        texts = fetch(PUBLIC_CORPORA[config.corpus], config.downloads or default_folder(), config.mirror)
    else:
        texts = {"training": find_files(config.text)}
    if config.validation_data:
        texts["validation"] = find_files(config.validation_data)
    if config.test_data:
        texts["test"] = find_files(config.test_data)
    if sum(files.count(STANDARD_INPUT) for files in texts.values()) > 1:
        raise ConfigError("standard input (-) can be read only once")
    for files in texts.values():
        if STANDARD_INPUT in files:
            # It is read more than once.
            spooled = staging / _SPOOLED
            with spooled.open("wb") as file:
                shutil.copyfileobj(sys.stdin.buffer, file)
            files[files.index(STANDARD_INPUT)] = spooled
    return texts


# --- splits ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _End:
    """Where a share of the text ends."""

    split: Split
    offset: int | None
    """In characters (byte: in bytes); None for the last one."""


def _ends(files: list[Path], config: PrepareConfig, texts: dict[Split, list[Path]], kind: TokenizerKind) -> list[_End]:
    """The splits that are cut from the training text, in their order."""
    shares: dict[Split, float] = {"validation": config.validation_share, "test": config.test_share}
    shares = {split: share for split, share in shares.items() if share and split not in texts}
    if not shares:
        return [_End("training", None)]
    with _progress("reading") as bar:
        total = sum(_length(block, kind) for block in _blocks(files, bar))
    names: list[Split] = ["training", *shares]
    ends = [round(total * share) for share in accumulate([1 - sum(shares.values()), *shares.values()])]
    return [_End(name, end) for name, end in zip(names[:-1], ends, strict=False)] + [_End(names[-1], None)]


def _length(text: str, kind: TokenizerKind) -> int:
    return len(text.encode()) if kind == "byte" else len(text)


def _split(blocks: Iterable[str], ends: list[_End], kind: TokenizerKind) -> Iterator[tuple[Split, str]]:
    """Blocks with the split that they belong to. A split of words or BPE ends with its line, or else before a blank."""
    offset = 0
    remaining = list(ends)
    for block in blocks:
        text = block
        length = _length(block, kind)
        while remaining[0].offset is not None and offset + length >= remaining[0].offset:
            cut = _cut(text, max(0, remaining[0].offset - offset), kind)
            if cut is None:
                break  # the line goes on in the next block, and the split with it
            if cut:
                yield remaining[0].split, text[:cut]
            moved = _length(text[:cut], kind)
            text, offset, length = text[cut:], offset + moved, length - moved
            remaining.pop(0)
        offset += length
        if text:
            yield remaining[0].split, text


def _cut(text: str, target: int, kind: TokenizerKind) -> int | None:
    """Where to cut at or after `target`; None if not in this text."""
    if kind == "byte":
        # Behind the character that the byte belongs to.
        return len(text.encode()[:target].decode("utf-8", "ignore")) + (0 if _is_boundary(text.encode(), target) else 1)
    if kind == "char":
        return target
    if target == 0 or text[target - 1] == "\n":
        return target
    for separator, behind in (("\n", 1), (" ", 0)):
        found = text.find(separator, target)
        if found >= 0:
            return found + behind
    return None


def _is_boundary(data: bytes, index: int) -> bool:
    """Whether a UTF-8 character begins at `index`."""
    return index >= len(data) or data[index] & 0xC0 != 0x80


def _splits(
    texts: dict[Split, list[Path]], ends: list[_End], kind: TokenizerKind, bar: tqdm[NoReturn]
) -> Iterator[tuple[Split, Iterator[str]]]:
    """Every split with its blocks, which must be read before the next split is asked for."""
    pieces = _split(_blocks(texts["training"], bar), ends, kind)
    ahead = next(pieces, None)

    def of(split: Split) -> Iterator[str]:
        nonlocal ahead
        while ahead is not None and ahead[0] == split:
            yield ahead[1]
            ahead = next(pieces, None)

    for end in ends:
        yield end.split, of(end.split)
    for split in SPLITS:
        if split != "training" and split in texts:
            yield split, _blocks(texts[split], bar)


# --- passes ----------------------------------------------------------------------------------------------


def _blocks(files: list[Path], bar: tqdm[NoReturn]) -> Iterator[str]:
    for block in blocks_of(read_files(files)):
        yield block
        bar.update(len(block))


def _progress(name: str) -> tqdm[NoReturn]:
    """A bar on a terminal, nothing elsewhere."""
    return tqdm(desc=name, unit="chars", unit_scale=True, disable=not sys.stderr.isatty(), dynamic_ncols=True)
