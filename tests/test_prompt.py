"""Prompts as people type them, for vocabularies of pre-tokenized text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvd_lm.data.tokenizer import train_tokenizer, train_word_level
from hvd_lm.generation.prompt import read_prompt

WORDS = train_word_level("the Cat sat , on \" NATO ground . don't U.S. é\n", None)


def words(prompt: str) -> list[str]:
    return [WORDS.token(token) for token in read_prompt(WORDS, prompt).ids]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("the Cat sat", ["the", "Cat", "sat"]),
        ("The cat SAT", ["the", "Cat", "sat"]),
        ("the Cat, sat.", ["the", "Cat", ",", "sat", "."]),
        ('"The Cat"', ['"', "the", "Cat", '"']),
        ("nato", ["NATO"]),
        ("don't", ["don't"]),
        ("U.S.", ["U.S."]),
        ("e\u0301", ["é"]),
        ("the\nCat", ["the", "\n", "Cat"]),
        ("the\r\nCat", ["the", "\n", "Cat"]),
        ("  the   Cat ", ["the", "Cat"]),
        ("", []),
        ("...", [".", ".", "."]),
    ],
)
def test_words_are_found_as_the_text_writes_them(prompt: str, expected: list[str]) -> None:
    if expected == [".", ".", "."]:
        expected = ["<unk>"]  # a word of punctuation alone stays one word
    assert words(prompt) == expected


def test_unknown_words_are_named_once() -> None:
    read = read_prompt(WORDS, "the zebra, Zebra! zebra on <unk>")
    assert read.unknown == ("zebra", "Zebra!")
    assert [WORDS.token(token) for token in read.ids] == ["the", "<unk>", ",", "<unk>", "<unk>", "on", "<unk>"]


def test_characters_that_are_unknown() -> None:
    tokenizer = train_tokenizer(["abc\n"], "char")
    read = read_prompt(tokenizer, "abz\nz")
    assert read.unknown == ("z",)
    assert (read.ids == tokenizer.unknown_id).tolist() == [False, False, True, False, True]


@pytest.mark.parametrize("kind", ["byte", "bpe"])
@given(prompt=st.text())
def test_bytes_know_everything(kind: str, prompt: str) -> None:
    tokenizer = train_tokenizer(["some text\n"] if kind == "bpe" else [], kind)  # type: ignore[arg-type]
    read = read_prompt(tokenizer, prompt)
    assert not read.unknown
    assert tokenizer.decode(read.ids) == prompt.encode("utf-8", "replace").decode().replace("\r\n", "\n")


@given(prompt=st.text())
def test_any_prompt_is_read(prompt: str) -> None:
    read = read_prompt(WORDS, prompt)
    assert ((read.ids >= 0) & (read.ids < WORDS.vocabulary_size)).all()
