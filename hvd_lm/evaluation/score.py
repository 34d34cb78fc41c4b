"""``hvd-lm score``: the log-probability of every line, or every word, of texts, as TSV; to rescore n-best lists, for example.

Rank 0 reads and writes; all ranks compute.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TextIO, cast

import numpy as np
from numpy.typing import NDArray

from hvd_lm import adapters
from hvd_lm import checkpoint as checkpoints
from hvd_lm.adapters.base import Adapter
from hvd_lm.adapters.ending import ending_together
from hvd_lm.adapters.job import Job
from hvd_lm.checkpoint.files import new_file
from hvd_lm.config import Framework, TopologyConfig
from hvd_lm.data.blanks import words
from hvd_lm.data.corpus import chunks_of
from hvd_lm.data.texts import open_prepared
from hvd_lm.data.tokenizer import END_OF_LINE, Tokenizer
from hvd_lm.data.walk import STANDARD_INPUT, find_files
from hvd_lm.errors import ConfigError, DataError, require, why
from hvd_lm.evaluation.exact_loss import evaluation_streams, exact_losses
from hvd_lm.evaluation.line_losses import line_losses
from hvd_lm.evaluation.perplexity import model_digest
from hvd_lm.job.agreement import settings
from hvd_lm.job.launcher import launched_rank, launched_size
from hvd_lm.model.weights import Array
from hvd_lm.paths import make_paths

_MOST_LINES, _MOST_CHARACTERS = 1 << 14, 1 << 21
"""That are held, sorted by length and answered at a time."""
_OF_A_RANK = ("checkpoint", "data", "threads", "out")
"""Settings that may differ between ranks: rank 0 reads and writes."""


@dataclass(frozen=True)
class ScoreConfig:
    """Log-probability of every line, or every word, of texts, alone or on every rank of a horovodrun job."""

    checkpoint: Path
    """Folder of a training run (its newest checkpoint), or of one checkpoint."""
    data: tuple[Path, ...] = (STANDARD_INPUT,)
    """UTF-8 texts, one after the other; - is standard input. Only rank 0 reads them."""
    out: Path | None = None
    """File to write, once all is scored; standard output unless given."""
    words: bool = False
    """A row for every word, with the number of its line; else one for every line."""
    columns: int = 0
    """Leading columns of each line, set off by tabs, that are passed through and not scored: the ids of an n-best list."""
    state: Literal["zero", "carried"] = "zero"
    """zero: every line by itself, from the zero state after <eos>, as for rescoring. carried: as running text, in which a line
    begins in the state after the one before, as evaluate reads it; all of it is held in memory."""
    end_of_line: bool = True
    """Whether the end of each line (<eos>) counts. A last line without line break has one too."""
    framework: Framework = "torch"
    """Which framework computes; any can read any checkpoint."""
    batch_size: int = 64
    """Lines (carried: streams) of a rank that are read side by side. It changes the speed, not the result."""
    sequence_length: int = 64
    """Tokens of a line that are computed at once. It changes the speed, not the result."""
    threads: int | None = None
    """Compute threads of a rank. Unless given: the cores of the machine shared by its ranks."""
    model_parallel: int = 1
    """Ranks that hold one copy of the model together, each a part of the vocabulary: for a model that fits no single rank."""

    def __post_init__(self) -> None:
        make_paths(self, "checkpoint", "data", "out")
        for name in ("batch_size", "sequence_length", "threads", "model_parallel"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"--{name.replace('_', '-')} must be at least 1, not {value}")
        require(self.columns >= 0, f"--columns must not be negative, not {self.columns}")
        require(bool(self.data), "--data needs a text, or - for standard input")


@dataclass(frozen=True)
class WordScore:
    """What the model says of a word."""

    word: str
    """As it stands in the text; <eos> for the end of a line."""
    log_probability: float
    """Natural logarithm: of all its tokens, with the blank before it."""
    unknown: bool
    """Whether the vocabulary lacks it, or one of its characters: then it counts as <unk>."""


@dataclass(frozen=True)
class LineScore:
    """What the model says of a line."""

    words: tuple[WordScore, ...]
    tokens: int
    """That were scored."""
    kept: tuple[str, ...] = ()
    """Columns that were passed through."""

    @property
    def log_probability(self) -> float:
        """Natural logarithm."""
        return sum(word.log_probability for word in self.words)

    @property
    def unknown(self) -> int:
        """How many words the vocabulary lacks."""
        return sum(word.unknown for word in self.words)


def score(
    checkpoint: Path | str,
    lines: Iterable[str],
    *,
    state: Literal["zero", "carried"] = "zero",
    end_of_line: bool = True,
    framework: Framework = "torch",
    batch_size: int = 64,
    sequence_length: int = 64,
    threads: int | None = None,
    model_parallel: int = 1,
) -> list[LineScore]:
    """Score of each of `lines`, those of rank 0, on every rank (see ScoreConfig for the settings). Collective.

    Raises CheckpointError, DataError, ConfigError, FrameworkError or LostWorkerError, each with what to do.
    """
    if isinstance(lines, str):
        raise ConfigError("lines must be a list of strings, not one string: give [text]")
    config = ScoreConfig(
        cast(Path, checkpoint), state=state, end_of_line=end_of_line, framework=framework, batch_size=batch_size,
        sequence_length=sequence_length, threads=threads, model_parallel=model_parallel,
    )  # fmt: skip
    return list(_scores(config, lambda: lines))


def run(config: ScoreConfig) -> None:
    """Score the texts that `config` names, and write the TSV on rank 0. Collective."""
    if STANDARD_INPUT in config.data and launched_size() > 1:
        raise DataError("standard input does not reach the ranks of a job: give --data a file, which only rank 0 reads")
    scores = _scores(config, lambda: _lines_of(config.data))
    if launched_rank() != 0:
        for _ in scores:
            pass
        return
    _refuse_text_as_output(config)
    with _output(config.out) as output:
        for number, line in enumerate(scores, start=1):
            with _told(config.out):
                output.write(_rows(line, number) if config.words else _row(line))


def _row(line: LineScore) -> str:
    return "\t".join([*line.kept, f"{line.log_probability:.9g}", str(line.tokens), str(line.unknown)]) + "\n"


def _rows(line: LineScore, number: int) -> str:
    rows = ([*line.kept, str(number), word.word, f"{word.log_probability:.9g}", str(int(word.unknown))] for word in line.words)
    return "".join("\t".join(row) + "\n" for row in rows)


def _refuse_text_as_output(config: ScoreConfig) -> None:
    """Raises ConfigError if the scores would take the place of a text that they are of, DataError if there is none."""
    if config.out is None or not os.path.isfile(config.out):
        return
    texts = [file for file in find_files(config.data) if file.path != STANDARD_INPUT]
    if any(os.path.exists(file.path) and os.path.samefile(file.path, config.out) for file in texts):
        raise ConfigError(f"--out {config.out} is one of the texts to score: name another file")


@contextlib.contextmanager
def _output(path: Path | None) -> Iterator[TextIO]:
    if path is None:
        yield sys.stdout
        return
    with contextlib.ExitStack() as stack:
        with _told(path):
            file = stack.enter_context(new_file(path))
        yield file
        with _told(path):
            stack.close()


@contextlib.contextmanager
def _told(path: Path | None) -> Iterator[None]:
    """Raises DataError for a file that cannot be written."""
    try:
        yield
    except OSError as error:
        place = Path(error.filename) if error.filename else path  # beside `path`, perhaps, where nobody looks
        raise DataError(f"cannot write {path}: {why(error, place)}") from error


# --- lines -----------------------------------------------------------------------------------------------


def _lines_of(paths: Sequence[Path]) -> Iterator[str]:
    """The lines of texts, without their line breaks. Raises DataError for what holds no text."""
    if prepared := open_prepared(paths):
        raise DataError(f"{prepared.folder} is a prepared text, which has no lines any more: give plain text")
    rest = ""
    for chunk in chunks_of(paths):
        *whole, rest = (rest + chunk).split("\n")
        yield from whole
    if rest:
        yield rest


def _cut(lines: Iterable[str]) -> Iterator[list[str]]:
    """`lines`, some at a time. Raises DataError for one that is none."""
    some: list[str] = []
    characters = 0
    for number, line in enumerate(lines, start=1):
        if not isinstance(line, str) or "\n" in line:
            raise DataError(f"line {number} must be a string without a line break")
        some.append(line)
        characters += len(line)
        if len(some) == _MOST_LINES or characters >= _MOST_CHARACTERS:
            yield some
            some, characters = [], 0
    if some:
        yield some


def _shared(job: Job, lines: Callable[[], Iterable[str]]) -> Iterator[list[str]]:
    """The lines of rank 0, some at a time, on every rank. Collective."""
    mine = _cut(lines()) if job.topology.rank == 0 else iter(())
    while True:
        some: list[str] = []
        with job.trouble.noted():
            some = next(mine, [])
        job.agree()
        some = job.broadcast(some)
        if not some:
            return
        yield some


@dataclass(frozen=True)
class _Line:
    """A line as it was given."""

    kept: tuple[str, ...]
    text: str
    ids: NDArray[np.int32]
    """With its end."""


def _line(line: str, number: int, columns: int, tokenizer: Tokenizer) -> _Line:
    *kept, text = line.split("\t", columns)
    if len(kept) < columns:
        raise DataError(f"line {number} has {len(kept)} tab(s): --columns {columns} needs {columns}, each followed by a tab")
    return _Line(tuple(kept), text, np.append(tokenizer.encode_block(text), np.int32(tokenizer.end_of_line_id)))


# --- scores ----------------------------------------------------------------------------------------------


def _scores(config: ScoreConfig, lines: Callable[[], Iterable[str]]) -> Iterator[LineScore]:
    """The score of every line, in order, on every rank. Collective."""
    load = checkpoints.mapped if config.model_parallel > 1 else checkpoints.load_model
    loaded = checkpoints.language_model(load(config.checkpoint), config.checkpoint)
    topology = TopologyConfig(model_parallel=config.model_parallel)
    adapter = adapters.adapter(config.framework, topology=topology, threads=config.threads)
    job, tokenizer = adapter.job, loaded.tokenizer
    with ending_together(job):
        if job.topology.size > 1:
            job.agree({"have another model": model_digest(loaded), **settings(config, without=_OF_A_RANK)})
        with job.trouble.noted():
            adapter.build(loaded.model)
            adapter.load_weights(loaded.weights)
        job.agree()
        parts: Iterable[list[str]] = _shared(job, lines)
        if config.state == "carried":
            whole = [line for part in parts for line in part]
            parts = [whole] if whole else []
        number = 0
        for part in parts:
            read = [_line(line, number + place, config.columns, tokenizer) for place, line in enumerate(part, start=1)]
            number += len(read)
            losses_N = _losses(adapter, config, [line.ids for line in read], tokenizer.end_of_line_id)
            job.agree()
            begin = 0
            for line in read:
                yield _score(line, losses_N[begin : begin + len(line.ids)], tokenizer, config.end_of_line)
                begin += len(line.ids)


def _losses(adapter: Adapter, config: ScoreConfig, lines: list[NDArray[np.int32]], first_input: int) -> Array:
    if config.state == "zero":
        return line_losses(adapter, lines, first_input, config.batch_size, config.sequence_length)
    tokens = np.concatenate(lines)
    return exact_losses(adapter, evaluation_streams(adapter, tokens, first_input, config.batch_size, config.sequence_length))


def _score(line: _Line, losses_T: Array, tokenizer: Tokenizer, end_of_line: bool) -> LineScore:
    logs_T = -losses_T.astype(np.float64)
    ids_T = line.ids[:-1]
    found = [
        WordScore(word, float(logs_T[where].sum()), bool(np.any(ids_T[where] == tokenizer.unknown_id)))
        for word, where in _words(line.text, ids_T, tokenizer)
    ]
    if end_of_line:
        found.append(WordScore(END_OF_LINE, float(logs_T[-1]), False))
    return LineScore(tuple(found), len(ids_T) + end_of_line, line.kept)


def _words(text: str, ids_T: NDArray[np.int32], tokenizer: Tokenizer) -> Iterator[tuple[str, slice]]:
    """The words of a line, and which of its tokens they are: each with the blanks before it, the last with those behind it too."""
    if tokenizer.kind == "word":
        for place, word in enumerate(words(text)):
            yield word, slice(place, place + 1)
        return
    pieces = [tokenizer.bytes_of(i) if tokenizer.is_byte_level else tokenizer.token(i).encode() for i in ids_T.tolist()]
    last_inked = max((place for place, piece in enumerate(pieces) if piece.strip()), default=0)
    starts, inked = [0], False
    for place, piece in enumerate(pieces[: last_inked + 1]):
        if inked and piece[:1].isspace():
            starts.append(place)
            inked = False
        inked = inked or bool(piece.strip())
    if pieces:
        for start, stop in zip(starts, [*starts[1:], len(pieces)], strict=True):
            yield " ".join(b"".join(pieces[start:stop]).decode("utf-8", "replace").split()), slice(start, stop)
