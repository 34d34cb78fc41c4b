"""Word-level tokens in the conventions of PTB and WikiText: words between blanks, <eos> per line, <unk> for the rest."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import models, normalizers, pre_tokenizers, trainers

from hvd_lm.config import REFERENCE_VOCABULARY_SIZE
from hvd_lm.errors import CheckpointError, ConfigError

UNKNOWN = "<unk>"
END_OF_LINE = "<eos>"


class Tokenizer:
    """Text to token ids and back, on top of a HF tokenizer that holds the vocabulary."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._backend = backend
        self.end_of_line_id = self._id(END_OF_LINE)
        self.unknown_id = self._id(UNKNOWN)

    def _id(self, token: str) -> int:
        token_id = self._backend.token_to_id(token)
        if token_id is None:
            raise CheckpointError(f"the tokenizer has no {token}: it was not made by hvd_lm")
        return int(token_id)

    @property
    def vocabulary_size(self) -> int:
        return int(self._backend.get_vocab_size())

    def encode(self, text: str) -> NDArray[np.int32]:
        """Token ids ``int32 [tokens]`` of `text`, an <eos> after each line."""
        # Bytes of a command line that are no UTF-8 arrive as lone surrogates.
        lines = text.encode("utf-8", "replace").decode("utf-8").splitlines()
        encoded = self._backend.encode_batch_fast(lines)
        ids = [np.asarray([*line.ids, self.end_of_line_id], dtype=np.int32) for line in encoded]
        return np.concatenate(ids) if ids else np.empty(0, np.int32)

    def encode_prompt(self, prompt: str) -> NDArray[np.int32]:
        """Like `encode`, but the last line goes on: no <eos> after it."""
        ids = self.encode(prompt)
        is_open = bool(prompt) and prompt.splitlines()[-1] == prompt.splitlines(keepends=True)[-1]
        return ids[:-1] if is_open else ids

    def token(self, token_id: int) -> str:
        """How `token_id` reads in text: a line break for <eos>."""
        return "\n" if token_id == self.end_of_line_id else str(self._backend.id_to_token(token_id))

    def decode(self, ids: Iterable[int]) -> str:
        """Words joined by blanks, lines by line breaks."""
        return " ".join(self.token(i) for i in ids).replace(" \n ", "\n").replace(" \n", "\n")

    def to_json(self) -> str:
        return str(self._backend.to_str())

    def save(self, path: Path) -> None:
        path.write_text(self.to_json(), encoding="utf-8")


def from_json(text: str) -> Tokenizer:
    """The tokenizer that `Tokenizer.to_json` wrote."""
    return Tokenizer(tokenizers.Tokenizer.from_str(text))


def load(path: Path) -> Tokenizer:
    """Raises CheckpointError if `path` holds no tokenizer."""
    try:
        return from_json(path.read_text(encoding="utf-8"))
    except CheckpointError:
        raise
    except Exception as error:  # the tokenizers library raises bare Exception
        raise CheckpointError(f"cannot read the tokenizer {path}: {error}") from error


def train_word_level(text: str, vocabulary_size: int | None) -> Tokenizer:
    """The `vocabulary_size` most frequent words of `text`, <unk> and <eos> among them.

    None takes the reference size, or all words if they are fewer.
    Raises ConfigError if `text` yields fewer than `vocabulary_size`.
    """
    specials = [UNKNOWN, END_OF_LINE]
    limit = vocabulary_size or REFERENCE_VOCABULARY_SIZE
    counter = _word_level({})
    # Pre-tokenized texts hold the specials as words; as "special tokens" the trainer would list them twice and match them
    # inside of words, so it only counts, and the vocabulary is put together here.
    trainer = trainers.WordLevelTrainer(vocab_size=limit + len(specials), min_frequency=0, special_tokens=[], show_progress=False)
    counter.train_from_iterator(_blocks(text.splitlines()), trainer)
    counted = counter.get_vocab()
    words = [word for word in sorted(counted, key=counted.__getitem__) if word not in specials]
    vocabulary = [*specials, *words][:limit]
    tokenizer = Tokenizer(_word_level({word: index for index, word in enumerate(vocabulary)}))
    if vocabulary_size is not None and tokenizer.vocabulary_size < vocabulary_size:
        raise ConfigError(
            f"the text yields a vocabulary of {tokenizer.vocabulary_size} only: "
            f"set --vocabulary-size to that or less (now {vocabulary_size}), or give more text"
        )
    return tokenizer


def _word_level(vocabulary: dict[str, int]) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return backend


def _blocks(lines: Sequence[str], size: int = 1000) -> Iterable[Sequence[str]]:
    for start in range(0, len(lines), size):
        yield lines[start : start + size]
