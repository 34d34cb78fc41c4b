"""``hvd-lm prepare``: any text into token shards that training reads without tokenizing again.

    files -> blocks of text -> (1) where the splits end, (2) vocabulary, (3) token ids -> shards

The text is read anew for each pass, so memory does not grow with it. The tokenizers library spreads pass 3, and BPE's pass 2, over
the cores of a host; the ranks of an MPI job share pass 3, and the counts of pass 2.
What can be read only once, a pipe, is written down beside the result first.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import tyro
from tqdm import tqdm

from hvd_lm.checkpoint.files import new_folder
from hvd_lm.data import tokenizer as tokenizers
from hvd_lm.data.corpus import blocks_of, read_files
from hvd_lm.data.counts import CountedTokens, warn_of_long_words
from hvd_lm.data.download import CORPORA, PUBLIC_CORPORA, CorpusName, default_folder, fetch
from hvd_lm.data.shards import HEADER, SPLITS, Prepared, ShardWriter, Split, load, write_header
from hvd_lm.data.splits import DEFAULT_SHARES, End, length, share_out, split_blocks
from hvd_lm.data.tokenizer import KINDS, TokenizerKind, train_tokenizer
from hvd_lm.data.walk import STANDARD_INPUT, TextFile, find_files
from hvd_lm.errors import ConfigError, DataError, require
from hvd_lm.job.helpers import Spread, in_turn
from hvd_lm.paths import make_paths


@dataclass(frozen=True)
class PrepareConfig:
    """Turn texts into token shards, once, for any number of trainings."""

    text: tyro.conf.Positional[tuple[Path, ...]] = ()
    """UTF-8 texts: files (also .gz, .xz, .bz2, .zst), folders, globs, or - for standard input."""
    out: Path = Path("prepared")
    """Folder to make: token shards, tokenizer.json, prepared.json. It appears when it is complete."""
    corpus: CorpusName | None = None
    """Download a known public corpus instead of giving texts."""
    tokenizer: TokenizerKind | None = None
    """What a token is: a word between blanks (PTB and WikiText conventions), a character, a byte, or a byte-level BPE unit. Unless
    given: word, or what --tokenizer-file holds."""
    tokenizer_file: Path | None = None
    """Use this tokenizer.json, of a prepared folder or a run, instead of making one."""
    vocabulary_size: int | None = None
    """Tokens in the vocabulary: the most frequent of the training split. Unless given: 10000 for word and bpe, all for char, 256
    for byte; fewer if the text yields fewer."""
    validation_data: tuple[Path, ...] = ()
    """Texts of the validation split. None: a share of the text."""
    test_data: tuple[Path, ...] = ()
    """Texts of the test split. None: a share of the text."""
    validation_share: float | None = None
    """Share of the text, behind the training split. Unless given: 0.05, or the texts of --validation-data."""
    test_share: float | None = None
    """Share of the text, at its end. Unless given: 0.05, or the texts of --test-data."""
    downloads: Path | None = None
    """Where downloaded corpora are kept, and looked for. Unless given: ~/.cache/hvd_lm/corpora."""
    mirror: str | None = None
    """Address of a folder on a web server that holds the files of --corpus, instead of their usual places."""

    def __post_init__(self) -> None:
        make_paths(self, "text", "out", "tokenizer_file", "validation_data", "test_data", "downloads")
        require(bool(self.text) != bool(self.corpus), "give texts to prepare, or --corpus (one of them)")
        require(self.corpus is None or self.corpus in CORPORA, f"--corpus must be one of {', '.join(CORPORA)}, not {self.corpus}")
        kinds = ", ".join(KINDS)
        require(self.tokenizer is None or self.tokenizer in KINDS, f"--tokenizer must be one of {kinds}, not {self.tokenizer}")
        require(self.mirror is None or self.corpus is not None, "--mirror needs a --corpus to download")
        require(self.downloads is None or self.corpus is not None, "--downloads needs a --corpus to download")
        require(
            self.vocabulary_size is None or self.vocabulary_size >= 2,
            f"--vocabulary-size must be at least 2, not {self.vocabulary_size}",
        )
        require(
            self.tokenizer_file is None or self.vocabulary_size is None,
            "--tokenizer-file brings its own vocabulary: leave --vocabulary-size away",
        )
        require(
            self.tokenizer_file is None or self.tokenizer is None,
            "--tokenizer-file tells what a token is: leave --tokenizer away",
        )
        given: dict[Split, float | None] = {"validation": self.validation_share, "test": self.test_share}
        for split, share in given.items():
            require(share is None or 0 <= share < 1, f"--{split}-share must be in [0, 1), not {share}")
            require(
                share is None or split not in self.own_texts, f"the {split} split has texts of its own: leave --{split}-share away"
            )
        require(sum(self.shares.values()) < 1, "--validation-share and --test-share leave nothing to train on")

    @property
    def own_texts(self) -> frozenset[Split]:
        """The splits that are not cut from the training text."""
        texts: dict[Split, object] = {"validation": self.validation_data, "test": self.test_data}
        fetched = PUBLIC_CORPORA[self.corpus].splits if self.corpus else {}
        return frozenset(split for split in SPLITS if texts.get(split) or split in fetched)

    @property
    def shares(self) -> dict[Split, float]:
        """Of the text that is cut, in the order of its splits."""
        given: dict[Split, float | None] = {"validation": self.validation_share, "test": self.test_share}
        shares = {split: DEFAULT_SHARES[split] if share is None else share for split, share in given.items()}
        return {split: share for split, share in shares.items() if share and split not in self.own_texts}


def prepare(config: PrepareConfig, spread: Spread = in_turn) -> Prepared:
    """Write the prepared folder ``config.out`` and return it; the same bytes whoever does the work that is `spread`.

    Raises ConfigError or DataError, each with what to do; then nothing is left behind.
    """
    with new_folder(config.out, HEADER) as staging:
        _prepare(config, staging, spread)
    return load(config.out)


def _prepare(config: PrepareConfig, staging: Path, spread: Spread) -> None:
    texts = _texts(config, staging)
    tokenizer = tokenizers.load(config.tokenizer_file) if config.tokenizer_file else None
    kind = tokenizer.kind if tokenizer else config.tokenizer or "word"
    ends = _ends(texts["training"], config.shares, kind)
    if tokenizer is None:
        with _progress("vocabulary") as bar:
            pieces = split_blocks(_blocks(texts["training"], bar), ends, kind)
            training = (text for split, text in pieces if split == "training")
            tokenizer = train_tokenizer(training, kind, config.vocabulary_size, spread)
    written = {}
    with _progress("tokens") as bar:
        for split, blocks in _splits(texts, ends, kind, bar):
            counted = CountedTokens(blocks, tokenizer, spread)
            writer = ShardWriter(staging, split, tokenizer.vocabulary_size)
            writer.write_all(counted)
            if counted.counts.tokens:
                written[split] = (counted.counts, writer.shards)
            else:
                for shard in writer.shards:
                    (staging / shard.file).unlink()
    if "training" not in written:
        raise DataError("the text is too short for a training split: give more text, or smaller shares for validation and test")
    for spooled in staging.glob(f"{_SPOOLED}*"):
        spooled.unlink()
    write_header(staging, tokenizer, written)
    warn_of_long_words(written["training"][0], kind)


_SPOOLED = "spooled-"


def _texts(config: PrepareConfig, staging: Path) -> dict[Split, list[TextFile]]:
    """The files of every split that has its own, each of which can be read more than once."""
    texts: dict[Split, list[TextFile]] = {}
    if config.corpus:
        fetched = fetch(PUBLIC_CORPORA[config.corpus], config.downloads or default_folder(), config.mirror)
        texts = {split: [TextFile(path) for path in paths] for split, paths in fetched.items()}
    else:
        texts["training"] = find_files(config.text)
    if config.validation_data:
        texts["validation"] = find_files(config.validation_data)
    if config.test_data:
        texts["test"] = find_files(config.test_data)
    if sum(file.path == STANDARD_INPUT for files in texts.values() for file in files) > 1:
        raise ConfigError("standard input (-) can be read only once")
    pipes = [(files, index) for files in texts.values() for index, file in enumerate(files) if file.is_pipe()]
    for number, (files, index) in enumerate(pipes):
        files[index] = _spool(files[index], staging / f"{_SPOOLED}{number}")
    return texts


def _spool(pipe: TextFile, path: Path) -> TextFile:
    """The text of what can be read only once, as a file. Raises DataError as `read_files`."""
    with path.open("w", encoding="utf-8", newline="") as file:
        for chunk in read_files([pipe]):
            file.write(chunk)
    return TextFile(path)


def _ends(files: list[TextFile], shares: dict[Split, float], kind: TokenizerKind) -> list[End]:
    """The splits that are cut from the training text, in their order."""
    if not shares:
        return share_out(0, shares)
    with _progress("reading") as bar:
        return share_out(sum(length(block, kind) for block in _blocks(files, bar)), shares)


def _splits(
    texts: dict[Split, list[TextFile]], ends: list[End], kind: TokenizerKind, bar: tqdm[NoReturn]
) -> Iterator[tuple[Split, Iterator[str]]]:
    """Every split with its blocks, which must be read before the next split is asked for."""
    pieces = split_blocks(_blocks(texts["training"], bar), ends, kind)
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


def _blocks(files: list[TextFile], bar: tqdm[NoReturn]) -> Iterator[str]:
    for block in blocks_of(read_files(files)):
        yield block
        bar.update(len(block))


def _progress(name: str) -> tqdm[NoReturn]:
    """A bar on a terminal, nothing elsewhere."""
    return tqdm(desc=name, unit="chars", unit_scale=True, disable=not sys.stderr.isatty(), dynamic_ncols=True)
