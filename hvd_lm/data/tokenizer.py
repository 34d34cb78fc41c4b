"""Text to token ids and back: words, characters, bytes, or byte-level BPE, each a HF tokenizer in one JSON file.

    word   words between blanks, <eos> after each line, <unk> for words that were cut: the conventions of PTB and WikiText
    char   every character a token, <unk> for those that were cut
    byte   every byte of UTF-8 a token: 256, nothing is unknown
    bpe    byte-level byte-pair encoding (Sennrich et al. 2016, arXiv:1508.07909; Radford et al. 2019): nothing is unknown

A line break is a token of its own in all of them, and the input before the first token of a text. All but word give the text
back as it was.
"""

from __future__ import annotations

import codecs
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

from hvd_lm.config import REFERENCE_VOCABULARY_SIZE
from hvd_lm.data.blanks import words
from hvd_lm.data.corpus import blocks_of
from hvd_lm.errors import CheckpointError, ConfigError
from hvd_lm.job.helpers import Spread, in_turn

TokenizerKind = Literal["word", "char", "byte", "bpe"]
KINDS: tuple[TokenizerKind, ...] = get_args(TokenizerKind)

UNKNOWN = "<unk>"
END_OF_LINE = "<eos>"
_CODE_POINTS = 0x110000
_LONGEST_WORD = 256
"""Bytes; BPE merges nothing across its end."""


def _byte_names() -> list[str]:
    """The printable character that stands for each byte in the vocabulary of a byte-level tokenizer (as in GPT-2)."""
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


_BYTE_NAMES = _byte_names()
_BYTES = {name: byte for byte, name in enumerate(_BYTE_NAMES)}


class Tokenizer:
    """Text to token ids and back, on top of a HF tokenizer that holds the vocabulary."""

    def __init__(self, backend: tokenizers.Tokenizer, kind: TokenizerKind) -> None:
        """Raises CheckpointError if `backend` has no line break, or no <unk> that `kind` needs."""
        self._backend = backend
        self.kind = kind
        self.is_byte_level = self.kind in ("byte", "bpe")
        line_break = {"word": END_OF_LINE, "char": "\n"}.get(self.kind, _BYTE_NAMES[ord("\n")])
        self.end_of_line_id = self._id(line_break)
        self.unknown_id: int | None = None if self.is_byte_level else self._id(UNKNOWN)

    def _id(self, token: str) -> int:
        token_id = self._backend.token_to_id(token)
        if token_id is None:
            raise CheckpointError(f"it has no {token!r}: hvd_lm did not make it")
        return int(token_id)

    @property
    def vocabulary_size(self) -> int:
        return int(self._backend.get_vocab_size())

    def knows(self, token: str) -> bool:
        """Whether the vocabulary has `token` (NFC)."""
        normalizer = self._backend.normalizer
        return self._backend.token_to_id(normalizer.normalize_str(token) if normalizer else token) is not None

    # --- text to ids -------------------------------------------------------------------------------------

    def encode(self, text: str) -> NDArray[np.int32]:
        """Token ids ``int32 [tokens]`` of `text`; a last line without line break gets its <eos> from word-level too."""
        ids = list(self.encode_blocks(blocks_of([text])))
        return np.concatenate(ids) if ids else np.empty(0, np.int32)

    def encode_blocks(self, blocks: Iterable[str]) -> Iterator[NDArray[np.int32]]:
        """Token ids of a long text that comes in blocks (`corpus.blocks_of`), array by array."""
        block = "\n"
        for block in blocks:
            yield self.encode_block(block)
        yield self.end_of(block)

    def end_of(self, block: str) -> NDArray[np.int32]:
        """What follows the last block of a text: nothing, or the <eos> of a line without line break."""
        is_open = self.kind == "word" and not block.endswith("\n")
        return np.array([self.end_of_line_id] if is_open else [], np.int32)

    def encode_prompt(self, prompt: str) -> NDArray[np.int32]:
        """Like `encode`, but the last line goes on: no <eos> after it."""
        ids = [self.encode_block(block) for block in blocks_of([prompt.replace("\r\n", "\n")])]
        return np.concatenate(ids) if ids else np.empty(0, np.int32)

    def encode_block(self, text: str) -> NDArray[np.int32]:
        """Token ids of a part of a text that goes on behind it."""
        # Bytes of a command line that are no UTF-8 arrive as lone surrogates.
        data = text.encode("utf-8", "replace")
        if self.kind == "byte":
            return self._table[np.frombuffer(data, np.uint8)]
        text = data.decode("utf-8")
        if self.kind == "char":
            return self._table[_code_points(text)]
        first, *others = self._backend.encode_batch_fast(text.split("\n"))
        ids = [np.asarray(first.ids, np.int32)]
        ids += [np.asarray([self.end_of_line_id, *line.ids], np.int32) for line in others]
        return np.concatenate(ids)

    @cached_property
    def _table(self) -> NDArray[np.int32]:
        """Id of every byte (byte) or code point (char)."""
        if self.kind == "byte":
            return np.array([self._id(name) for name in _BYTE_NAMES], np.int32)
        table = np.full(_CODE_POINTS, self.unknown_id, np.int32)
        for token, token_id in self._backend.get_vocab().items():
            if token != UNKNOWN:
                table[ord(token)] = token_id
        return table

    # --- ids to text -------------------------------------------------------------------------------------

    def token(self, token_id: int) -> str:
        """How `token_id` reads in text: a line break for <eos>."""
        if token_id == self.end_of_line_id:
            return "\n"
        return self.bytes_of(token_id).decode("utf-8", "replace") if self.is_byte_level else self._name(token_id)

    def _name(self, token_id: int) -> str:
        return str(self._backend.id_to_token(int(token_id)))

    def bytes_of(self, token_id: int) -> bytes:
        """The bytes of a byte-level token."""
        return bytes(_BYTES[character] for character in self._name(token_id))

    def detokenizer(self, after: str = "") -> Detokenizer:
        """What turns ids into the text that follows `after`, one by one."""
        return Detokenizer(self, after)

    def pieces(self, ids: Iterable[int], after: str = "") -> Iterator[str]:
        """The text of each of `ids` as it comes (see `Detokenizer.add`), and what is left at the end."""
        growing = self.detokenizer(after)
        for token_id in ids:
            yield growing.add(token_id)
        if cut := growing.end():
            yield cut

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; words joined by blanks."""
        return "".join(self.pieces(ids))

    # --- files -------------------------------------------------------------------------------------------

    def to_json(self) -> str:
        return str(self._backend.to_str())

    def save(self, path: Path) -> None:
        path.write_text(self.to_json(), encoding="utf-8")


class Detokenizer:
    """Ids to text, one by one."""

    def __init__(self, tokenizer: Tokenizer, after: str) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._at_start = not after or after[-1].isspace()

    def add(self, token_id: int) -> str:
        """The text of the next token, with the blank that sets a word off from the one before.

        A character whose bytes are spread over several tokens appears with the last of them.
        """
        tokenizer = self._tokenizer
        if tokenizer.is_byte_level:
            return self._decoder.decode(tokenizer.bytes_of(token_id))
        text = tokenizer.token(token_id)
        set_off = not (self._at_start or text == "\n" or tokenizer.kind == "char")
        self._at_start = text == "\n"
        return f" {text}" if set_off else text

    def end(self) -> str:
        """What stands for a character that was cut off."""
        return self._decoder.decode(b"", final=True)


# --- backends --------------------------------------------------------------------------------------------


def _word_level(vocabulary: dict[str, int]) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return backend


def _character_level(vocabulary: dict[str, int]) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    return backend


def _byte_level(vocabulary: dict[str, int], merges: list[tuple[str, str]], kind: TokenizerKind) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("\n", "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind == "bpe"),
            # The time for a word grows with the square of its length, or nearly.
            pre_tokenizers.FixedLength(_LONGEST_WORD),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    return backend


def _backend(kind: TokenizerKind, vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> tokenizers.Tokenizer:
    if kind in ("byte", "bpe"):
        return _byte_level(vocabulary, merges, kind)
    return _word_level(vocabulary) if kind == "word" else _character_level(vocabulary)


# --- from a file -----------------------------------------------------------------------------------------


def from_json(text: str) -> Tokenizer:
    """The tokenizer that `Tokenizer.to_json` wrote, built anew from its vocabulary and merges: a file brings no rules of its own.

    Raises CheckpointError if hvd_lm did not make it, ValueError if `text` is no JSON.
    """
    description = json.loads(text)
    merges: list[object] = []
    match description:
        case {"model": {"type": "WordLevel", "vocab": dict(vocabulary)}, "pre_tokenizer": {"type": "WhitespaceSplit"}}:
            kind: TokenizerKind = "word"
        case {"model": {"type": "WordLevel", "vocab": dict(vocabulary)}, "pre_tokenizer": {"type": "Split"}}:
            kind = "char"
        case {
            "model": {"type": "BPE", "vocab": dict(vocabulary), "merges": list(merges)},
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [_, {"use_regex": bool(words)}, _]},
        }:
            kind = "bpe" if words else "byte"
        case _:
            raise CheckpointError("it splits text in another way than hvd_lm's do: hvd_lm did not make it")
    _check_vocabulary(vocabulary, kind)
    backend = _backend(kind, vocabulary, [_pair(merge, vocabulary) for merge in merges])
    # Without its words, which would take as long as reading the file.
    built = json.loads(_backend(kind, {}, []).to_str())
    if other := [name for name in _RULES if description.get(name) != built[name]]:
        raise CheckpointError(f"its {other[0]} is not that of hvd_lm's {kind} tokens: hvd_lm did not make it")
    return Tokenizer(backend, kind)


def _check_vocabulary(vocabulary: dict[str, object], kind: TokenizerKind) -> None:
    """Raises CheckpointError unless it has the tokens that `kind` needs, none that it cannot have, and ids from 0 on."""
    needs: dict[TokenizerKind, set[str]] = {"word": {UNKNOWN, END_OF_LINE}, "char": {UNKNOWN, "\n"}}
    needed = needs.get(kind, set(_BYTE_NAMES))
    if missing := needed - vocabulary.keys():
        raise CheckpointError(f"it has no {min(missing)!r}: hvd_lm did not make it")
    others = vocabulary.keys() - needed
    fit: dict[TokenizerKind, Callable[[], bool]] = {
        "word": lambda: True,
        "char": lambda: all(len(token) == 1 for token in others),
        "byte": lambda: not others,
        "bpe": lambda: all(token and _BYTES.keys() >= set(token) for token in others),
    }
    ids = list(vocabulary.values())
    # Types first: to Python, True is 1.
    if not fit[kind]() or {*map(type, ids)} != {int} or set(ids) != set(range(len(ids))):
        raise CheckpointError(f"its vocabulary is not one of {kind} tokens, numbered from 0: hvd_lm did not make it")


_RULES = ("normalizer", "pre_tokenizer", "added_tokens")


def _pair(merge: object, vocabulary: Collection[str]) -> tuple[str, str]:
    """Two tokens that BPE joins to a third; older versions of the library set a blank between them. Raises CheckpointError."""
    match merge.split(" ") if isinstance(merge, str) else merge:
        case [str(left), str(right)] if all(token in vocabulary for token in (left, right, left + right)):
            return left, right
    raise CheckpointError(f"it joins {merge!r}, which are not two tokens that make a third: hvd_lm did not make it")


def load(path: Path) -> Tokenizer:
    """Raises CheckpointError if `path` holds no tokenizer of hvd_lm's."""
    try:
        if path.exists() and not path.is_file():
            raise CheckpointError("it is not a file")
        return from_json(path.read_text(encoding="utf-8"))
    except Exception as error:  # the tokenizers library raises bare Exception
        raise CheckpointError(f"cannot read the tokenizer {path}: {' '.join(str(error).split())}") from error


# --- vocabularies ----------------------------------------------------------------------------------------


def train_tokenizer(
    blocks: Iterable[str], kind: TokenizerKind, vocabulary_size: int | None = None, spread: Spread = in_turn
) -> Tokenizer:
    """A tokenizer for the text that comes in `blocks`, with the `vocabulary_size` most frequent tokens, specials among them.

    None takes the reference size (char: every character), or what the text yields if that is less; byte has 256 always.
    What is counted is `spread`; BPE learns its merges in this process. Raises ConfigError if the text yields fewer than
    `vocabulary_size`.
    """
    if kind == "word":
        tokenizer = _train_word(blocks, vocabulary_size, spread)
    elif kind == "char":
        tokenizer = _train_char(blocks, vocabulary_size, spread)
    else:
        tokenizer = _train_bytes(blocks if kind == "bpe" else [], vocabulary_size, kind)
    if vocabulary_size is not None and tokenizer.vocabulary_size != vocabulary_size:
        raise ConfigError(
            f"the text yields a vocabulary of {tokenizer.vocabulary_size} only: "
            f"set --vocabulary-size to that or less (now {vocabulary_size}), or give more text"
        )
    return tokenizer


def train_word_level(text: str, vocabulary_size: int | None) -> Tokenizer:
    """The tokenizer of a plain text in memory, as `train_tokenizer` with words."""
    return train_tokenizer(blocks_of([text]), "word", vocabulary_size)


def _train_word(blocks: Iterable[str], vocabulary_size: int | None, spread: Spread) -> Tokenizer:
    counts: Counter[str] = Counter()
    for counted in spread(_count_words, blocks):
        counts.update(counted)
    specials = [UNKNOWN, END_OF_LINE]
    for special in specials:  # pre-tokenized texts hold them as words
        counts.pop(special, None)
    # As the library's own trainer, which cannot put counts together.
    words = sorted(counts, key=lambda word: (-counts[word], word))
    vocabulary = [*specials, *words][: vocabulary_size or REFERENCE_VOCABULARY_SIZE]
    return Tokenizer(_word_level({word: index for index, word in enumerate(vocabulary)}), "word")


def _count_words(block: str) -> Counter[str]:
    normalize = normalizers.NFC().normalize_str
    counts: Counter[str] = Counter()
    for word, count in Counter(words(block)).items():
        counts[word if word.isascii() else normalize(word)] += count
    return counts


def _train_char(blocks: Iterable[str], vocabulary_size: int | None, spread: Spread) -> Tokenizer:
    counts = np.zeros(_CODE_POINTS, np.int64)
    for found, times in spread(_count_characters, blocks):
        counts[found] += times
    counts[ord("\n")] = 0  # it has its place already
    by_count = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
    vocabulary = [UNKNOWN, "\n", *map(chr, by_count.tolist())][:vocabulary_size]
    return Tokenizer(_character_level({token: index for index, token in enumerate(vocabulary)}), "char")


def _count_characters(block: str) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The code points in a block, and how often each is there."""
    counts = np.bincount(_code_points(block))
    found = np.flatnonzero(counts)
    return found, counts[found]


def _train_bytes(blocks: Iterable[str], vocabulary_size: int | None, kind: TokenizerKind) -> Tokenizer:
    limit = len(_BYTE_NAMES) if kind == "byte" else vocabulary_size or REFERENCE_VOCABULARY_SIZE
    if limit < len(_BYTE_NAMES) or (kind == "byte" and vocabulary_size not in (None, limit)):
        few = "exactly" if kind == "byte" else "at least"
        raise ConfigError(f"--tokenizer {kind} needs a --vocabulary-size of {few} {len(_BYTE_NAMES)}, not {vocabulary_size}")
    backend = _byte_level({name: byte for byte, name in enumerate(_BYTE_NAMES)}, [], kind)
    if kind == "bpe":
        trainer = trainers.BpeTrainer(
            vocab_size=limit, initial_alphabet=_BYTE_NAMES, special_tokens=[], show_progress=False, max_token_length=64
        )
        backend.train_from_iterator(_lines(blocks), trainer)
    return Tokenizer(backend, kind)


def _lines(blocks: Iterable[str]) -> Iterator[Sequence[str]]:
    """The lines of a text, many at once: what the trainers of the library spread over the cores."""
    for block in blocks:
        yield block.split("\n")


def _code_points(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "replace"), np.uint32)
