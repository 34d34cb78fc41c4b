"""Tokenizers, word-level above all: PTB and WikiText conventions, the frequency cut, odd texts, its file."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import tokenizers as tokenizers_library
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hvd_lm.config import REFERENCE_VOCABULARY_SIZE
from hvd_lm.data import corpus
from hvd_lm.data import tokenizer as tokenizers
from hvd_lm.data.corpus import blocks_of
from hvd_lm.data.tokenizer import END_OF_LINE, KINDS, UNKNOWN, Tokenizer, TokenizerKind, train_tokenizer, train_word_level
from hvd_lm.errors import CheckpointError, ConfigError

# As in PTB and WikiText: rare words are replaced in the text itself, numbers by N or @,@.
PRE_TOKENIZED = " the <unk> said N shares of <unk> corp. fell \n the price rose N % to $ N \n \n = heading = \n"


def words_of(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    return [int(i) for i in tokenizer.encode(text)]


def read_ids(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    return [tokenizer.token(i) for i in ids]


# --- conventions -----------------------------------------------------------------------------------------


def test_words_between_blanks_and_eos_per_line() -> None:
    tokenizer = train_word_level("the cat sat\non the mat .\n", None)
    tokens = read_ids(tokenizer, ids_of(tokenizer, "the cat sat\non the mat .\n"))
    assert tokens == ["the", "cat", "sat", "\n", "on", "the", "mat", ".", "\n"]
    assert tokenizer.token(tokenizer.end_of_line_id) == "\n"
    assert tokenizer.token(tokenizer.unknown_id) == UNKNOWN


def test_case_and_punctuation_stay() -> None:
    tokenizer = train_word_level("The the THE don't end. end", None)
    assert len(set(ids_of(tokenizer, "The the THE don't end. end"))) == 7  # six words and <eos>


def test_last_line_gets_eos_without_line_break() -> None:
    tokenizer = train_word_level("a b", None)
    assert ids_of(tokenizer, "a b") == ids_of(tokenizer, "a b\n")
    assert ids_of(tokenizer, "a b")[-1] == tokenizer.end_of_line_id


def test_blank_lines_are_lines() -> None:
    tokenizer = train_word_level("a", None)
    assert ids_of(tokenizer, "\n\na\n").count(tokenizer.end_of_line_id) == 3


def test_words_outside_the_vocabulary_become_unknown() -> None:
    tokenizer = train_word_level("known words\n", None)
    assert ids_of(tokenizer, "other known")[0] == tokenizer.unknown_id
    assert ids_of(tokenizer, "other known")[1] != tokenizer.unknown_id


def test_literal_unk_in_the_text_is_the_unknown_id() -> None:
    tokenizer = train_word_level(PRE_TOKENIZED, None)
    ids = ids_of(tokenizer, "the <unk> rose\n")
    assert ids[1] == tokenizer.unknown_id
    assert ids[1] == ids_of(tokenizer, "neverseen\n")[0]


def test_pretokenized_text_passes_unchanged() -> None:
    tokenizer = train_word_level(PRE_TOKENIZED, None)
    assert words_of(tokenizer.decode(tokenizer.encode(PRE_TOKENIZED))) == words_of(PRE_TOKENIZED)


@pytest.mark.parametrize("text", [PRE_TOKENIZED, "the <eos> cat <eos> sat\nthe end", "a a <unk> <eos> b", "<unk>", "<eos>"])
def test_ids_stay_within_a_vocabulary_without_holes(text: str) -> None:
    """A text that holds <unk> or <eos> itself, as PTB does, must not move their ids or push others beyond the embedding."""
    tokenizer = train_word_level(text, None)
    wanted = {UNKNOWN, END_OF_LINE, *text.split()}
    assert tokenizer.vocabulary_size == len(wanted)
    names = {tokenizer.token(i) for i in range(tokenizer.vocabulary_size)}
    assert names == (wanted - {END_OF_LINE}) | {"\n"}
    assert int(tokenizer.encode(text).max()) < tokenizer.vocabulary_size


@pytest.mark.parametrize("word", ["x<unk>y", "<unk>s", "(<eos>)", "<unk>."])
def test_word_that_contains_a_special_token_is_one_word(word: str) -> None:
    tokenizer = train_word_level(f"a {word} b\n", None)
    assert read_ids(tokenizer, ids_of(tokenizer, f"a {word} b\n")) == ["a", word, "b", "\n"]


# --- the frequency cut -----------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    counts=st.dictionaries(st.text("abcdefgh", min_size=1, max_size=4), st.integers(1, 20), min_size=1, max_size=25),
    data=st.data(),
)
def test_cut_keeps_the_most_frequent_words(counts: dict[str, int], data: st.DataObject) -> None:
    text = "\n".join(" ".join([word] * count) for word, count in counts.items())
    size = data.draw(st.integers(3, len(counts) + 2), label="size")
    tokenizer = train_word_level(text, size)
    assert tokenizer.vocabulary_size == size
    kept = {word for word in counts if ids_of(tokenizer, word)[0] != tokenizer.unknown_id}
    assert len(kept) == size - 2
    lowest_kept = min(counts[word] for word in kept)
    assert all(counts[word] <= lowest_kept for word in counts.keys() - kept)


def test_unknown_share_is_the_share_of_rare_words() -> None:
    tokenizer = train_word_level("a a a a b b b c\n", 4)
    np.testing.assert_array_equal(tokenizer.encode("a a a a b b b c\n") == tokenizer.unknown_id, [False] * 7 + [True, False])


@pytest.mark.parametrize("size", [6, 7, 10_000])
def test_vocabulary_larger_than_the_text_yields_names_both_sizes(size: int) -> None:
    with pytest.raises(ConfigError) as caught:
        train_word_level("one two three\n", size)
    assert "vocabulary of 5 " in str(caught.value)
    assert f"--vocabulary-size to that or less (now {size})" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_refusal_of_a_text_with_literal_unk_names_the_size_it_yields() -> None:
    with pytest.raises(ConfigError) as caught:
        train_word_level("a a <unk> <unk> b b c\n", 100)
    yielded = re.search(r"vocabulary of (\d+)", str(caught.value))
    assert yielded is not None
    assert yielded[1] == "5"
    assert train_word_level("a a <unk> <unk> b b c\n", 5).vocabulary_size == 5


@pytest.mark.parametrize("words", [1, 100, REFERENCE_VOCABULARY_SIZE - 2, REFERENCE_VOCABULARY_SIZE + 500])
def test_default_size_is_the_reference_or_what_the_text_yields(words: int) -> None:
    tokenizer = train_word_level(" ".join(f"w{i}" for i in range(words)), None)
    assert tokenizer.vocabulary_size == min(REFERENCE_VOCABULARY_SIZE, words + 2)


def test_training_is_deterministic() -> None:
    # Ties in frequency and many words: a hash order would show.
    text = "\n".join(" ".join(f"w{(i * j) % 701}" for j in range(1, 20)) for i in range(300))
    assert len({train_word_level(text, 400).to_json() for _ in range(3)}) == 1


@given(text=st.text(st.sampled_from("aábe\u0301\u0327\u2000\u2126Ω\x1c\x85 \n<unk>"), max_size=60))
def test_words_are_counted_as_the_library_does(text: str) -> None:
    counter = tokenizers_library.Tokenizer(tokenizers_library.models.WordLevel({}, unk_token=UNKNOWN))
    counter.normalizer = tokenizers_library.normalizers.NFC()
    counter.pre_tokenizer = tokenizers_library.pre_tokenizers.WhitespaceSplit()
    counter.train_from_iterator(
        text.split("\n"), tokenizers_library.trainers.WordLevelTrainer(vocab_size=100, min_frequency=0, special_tokens=[])
    )
    judged = counter.get_vocab()
    specials = [UNKNOWN, END_OF_LINE]
    words = [word for word in sorted(judged, key=judged.__getitem__) if word not in specials]
    tokenizer = train_word_level(text, None)
    assert [tokenizer._name(index) for index in range(tokenizer.vocabulary_size)] == [*specials, *words]


def test_most_frequent_words_have_the_lowest_ids() -> None:
    text = "c c c c b b b a a d"
    tokenizer = train_word_level(text, None)
    ranked = [word for word, _ in Counter(text.split()).most_common()]
    assert read_ids(tokenizer, list(range(2, 6))) == ranked


# --- there and back --------------------------------------------------------------------------------------

LINES = st.lists(st.lists(st.text("abcXYZ.,'-é0", min_size=1, max_size=5), max_size=6), min_size=1, max_size=8)


@settings(max_examples=80, deadline=None)
@given(lines=LINES)
def test_decode_gives_the_text_back_but_for_blanks(lines: list[list[str]]) -> None:
    text = "".join("  ".join(line) + "\n" for line in lines)
    tokenizer = train_word_level(text, None)
    assert words_of(tokenizer.decode(tokenizer.encode(text))) == lines


@settings(max_examples=60, deadline=None)
@given(lines=LINES)
def test_encode_of_decoded_ids_gives_the_ids_back(lines: list[list[str]]) -> None:
    text = "".join(" ".join(line) + "\n" for line in lines)
    tokenizer = train_word_level(text, None)
    ids = tokenizer.encode(text)
    np.testing.assert_array_equal(tokenizer.encode(tokenizer.decode(ids)), ids)


def test_equal_text_in_other_unicode_forms_is_the_same_word() -> None:
    tokenizer = train_word_level("caf\u00e9 x\n", None)
    assert ids_of(tokenizer, "cafe\u0301") == ids_of(tokenizer, "caf\u00e9")
    assert ids_of(tokenizer, "cafe\u0301")[0] != tokenizer.unknown_id


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("", []),
        ("a", ["a"]),
        ("a b", ["a", "b"]),
        ("a\n", ["a", "\n"]),
        ("a\nb", ["a", "\n", "b"]),
        ("a\r\n", ["a", "\n"]),
        ("\n", ["\n"]),
        ("a\n\n", ["a", "\n", "\n"]),
        (" ", []),
        ("a ", ["a"]),
    ],
)
def test_prompt_has_no_eos_at_an_open_last_line(prompt: str, expected: list[str]) -> None:
    tokenizer = train_word_level("a b\n", None)
    assert [tokenizer.token(int(i)) for i in tokenizer.encode_prompt(prompt)] == expected


# --- odd texts -------------------------------------------------------------------------------------------

LINE_BREAKS_AND_BLANKS = ["\r\n", "\r", "\f", "\v", "\u2028", "\u2029", "\x85", "\x1c", "\x1f", "\u00a0", "\u200b"]
ODD = [*LINE_BREAKS_AND_BLANKS, "\x00", "\ufeff", "🙂", "👩\u200d👩\u200d👧"]
TEXTS = st.lists(
    st.one_of(st.text(max_size=8), st.sampled_from([*ODD, UNKNOWN, END_OF_LINE, " ", "\n", "\t", "the"])), max_size=20
).map("".join)


def check_odd_text(text: str, folder: Path) -> None:
    """Ids are within range, one <eos> a line at least, and the same after the tokenizer went through its file."""
    tokenizer = train_word_level(text, None)
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32
    assert ids.ndim == 1
    assert ((ids >= 0) & (ids < tokenizer.vocabulary_size)).all()
    literal = text.count(END_OF_LINE)
    lines = text.count("\n") + bool(text and not text.endswith("\n"))
    assert lines <= int((ids == tokenizer.end_of_line_id).sum()) <= lines + literal
    path = folder / "tokenizer.json"
    tokenizer.save(path)
    loaded = tokenizers.load(path)
    np.testing.assert_array_equal(loaded.encode(text), ids)
    assert loaded.vocabulary_size == tokenizer.vocabulary_size
    assert (loaded.end_of_line_id, loaded.unknown_id) == (tokenizer.end_of_line_id, tokenizer.unknown_id)
    assert tokenizer.decode(ids) == loaded.decode(ids)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tokenizer")


@settings(max_examples=120, deadline=None)
@given(text=TEXTS)
@example(text="")
@example(text="\n\n\n")
@example(text="a\r\nb\r\n")
@example(text="page one\fpage two\f")
@example(text="one\u2028two\u2029three")
@example(text="🙂 👩\u200d👩\u200d👧 🙂\n")
@example(text="a\x00b \x00\n\x00")
@example(text="   \t \n  \n")
@example(text="<unk> <unk> <eos> a\n")
def test_any_text_encodes_within_range(folder: Path, text: str) -> None:
    check_odd_text(text, folder)


@pytest.mark.parametrize("text", ["word " * 200_000, "x" * 1_000_000], ids=["words", "one word"])
def test_single_line_of_a_megabyte(folder: Path, text: str) -> None:
    check_odd_text(text, folder)
    tokenizer = train_word_level(text, None)
    assert words_of(tokenizer.decode(tokenizer.encode(text))) == words_of(text)


@pytest.mark.parametrize("text", ["", "new words\n", "🙂\x00\f\u2028", "<unk> <eos>"])
def test_text_other_than_the_trained_one_stays_within_range(text: str) -> None:
    tokenizer = train_word_level("a b c\n", None)
    ids = tokenizer.encode(text)
    assert ((ids >= 0) & (ids < tokenizer.vocabulary_size)).all()


def test_prompt_bytes_that_are_no_utf8_are_unknown_words() -> None:
    """The shell hands bytes that are not UTF-8 to Python as lone surrogates."""
    tokenizer = train_word_level("a b\n", None)
    prompt = b"a \xff".decode("utf-8", "surrogateescape")
    assert [int(i) for i in tokenizer.encode_prompt(prompt)] == [ids_of(tokenizer, "a")[0], tokenizer.unknown_id]


# --- other kinds -----------------------------------------------------------------------------------------

LOSSLESS = ["char", "byte", "bpe"]
SAMPLE = "Größe, naïve: the cat's 🙂 hat\n\n  two  blanks\tand\x00NUL\n" * 30


def of_kind(kind: TokenizerKind, text: str = SAMPLE) -> Tokenizer:
    return train_tokenizer(blocks_of([text]), kind, 270 if kind == "bpe" else None)


@pytest.mark.parametrize("kind", LOSSLESS)
@given(text=TEXTS)
@example(text=SAMPLE)
@example(text="\n\n \n")
@example(text="no line break at the end")
def test_text_comes_back_as_it_was(kind: TokenizerKind, text: str) -> None:
    tokenizer = of_kind(kind, SAMPLE + text)
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32
    assert ((ids >= 0) & (ids < tokenizer.vocabulary_size)).all()
    assert tokenizer.decode(ids) == text
    assert int((ids == tokenizer.end_of_line_id).sum()) == text.count("\n")
    assert "".join(tokenizer.pieces(ids)) == text


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_the_library(kind: TokenizerKind, tmp_path: Path) -> None:
    """The file serves others: byte and char have a way of their own here, which must give what HF tokenizers give."""
    tokenizer = of_kind(kind)
    tokenizer.save(tmp_path / "tokenizer.json")
    library = tokenizers_library.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    line = "the cat's naïve 🙂 hat"
    assert library.encode(line).ids == tokenizer.encode_prompt(line).tolist()
    if kind != "word":
        assert library.encode(SAMPLE).ids == tokenizer.encode(SAMPLE).tolist()
        assert library.decode(tokenizer.encode(SAMPLE).tolist()) == SAMPLE


@pytest.mark.parametrize("kind", KINDS)
def test_kind_survives_the_file(kind: TokenizerKind, tmp_path: Path) -> None:
    of_kind(kind).save(tmp_path / "tokenizer.json")
    loaded = tokenizers.load(tmp_path / "tokenizer.json")
    assert loaded.kind == kind
    assert (loaded.unknown_id is None) == (kind in ("byte", "bpe"))
    np.testing.assert_array_equal(loaded.encode(SAMPLE), of_kind(kind).encode(SAMPLE))


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_give_the_ids_of_the_whole(kind: TokenizerKind) -> None:
    tokenizer = of_kind(kind)
    with patch.object(corpus, "BLOCK", 50):
        blocks = list(blocks_of([SAMPLE]))
    assert len(blocks) > 10
    np.testing.assert_array_equal(np.concatenate(list(tokenizer.encode_blocks(blocks))), tokenizer.encode(SAMPLE))


def test_a_byte_is_its_own_id() -> None:
    assert of_kind("byte").encode("A\né").tolist() == [65, 10, 0xC3, 0xA9]


def test_bpe_merges_what_is_frequent() -> None:
    text = "the the the the the\n" * 50
    tokenizer = train_tokenizer([text], "bpe", None)
    assert 256 < tokenizer.vocabulary_size < 300
    assert len(tokenizer.encode(" the")) == 1
    assert len(tokenizer.encode("xyz")) == 3


def test_cut_characters_are_unknown() -> None:
    tokenizer = train_tokenizer(["aaabbc"], "char", 4)
    assert tokenizer.encode("abc").tolist() == [2, 3, tokenizer.unknown_id]


@pytest.mark.parametrize(("kind", "size"), [("byte", 255), ("byte", 257), ("bpe", 255)])
def test_bytes_need_their_place(kind: TokenizerKind, size: int) -> None:
    with pytest.raises(ConfigError, match=f"--tokenizer {kind} needs a --vocabulary-size of .* 256, not {size}"):
        train_tokenizer([SAMPLE], kind, size)


@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_vocabulary_that_the_text_does_not_yield(kind: TokenizerKind) -> None:
    with pytest.raises(ConfigError, match="the text yields a vocabulary of"):
        train_tokenizer([SAMPLE], kind, 10_000)


def test_pieces_hold_an_incomplete_character_back() -> None:
    tokenizer = of_kind("byte")
    assert list(tokenizer.pieces(tokenizer.encode("a🙂b"))) == ["a", "", "", "", "🙂", "b"]
    assert "".join(tokenizer.pieces([65, 0xF0, 0x9F])) == "A\ufffd"


def test_pieces_set_words_off_from_what_is_before() -> None:
    tokenizer = train_word_level("a b\n", None)
    a, eos = tokenizer.encode("a").tolist()
    assert list(tokenizer.pieces([a, eos, a], after="b")) == [" a", "\n", "a"]
    assert list(tokenizer.pieces([a], after="b ")) == ["a"]
    assert list(tokenizer.pieces([a], after="")) == ["a"]


# --- the file --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"[]", b"null", b"\xff\xfe", b'{"version": "1.0"}'])
def test_damaged_file_is_a_checkpoint_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        tokenizers.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_truncated_file_is_a_checkpoint_error(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    text = train_word_level("a b c\n", None).to_json()
    for length in range(0, len(text) - 1, 37):
        path.write_text(text[:length], encoding="utf-8")
        with pytest.raises(CheckpointError, match="cannot read the tokenizer"):
            tokenizers.load(path)


def test_missing_file_is_a_checkpoint_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere"):
        tokenizers.load(tmp_path / "nowhere.json")


@pytest.mark.parametrize("token", [UNKNOWN, END_OF_LINE])
def test_foreign_tokenizer_is_refused(tmp_path: Path, token: str) -> None:
    """A tokenizer of another program lacks the special tokens."""
    content = json.loads(train_word_level("a b c\n", None).to_json())
    content["added_tokens"] = [entry for entry in content["added_tokens"] if entry["content"] != token]
    content["model"]["vocab"] = {word: i for word, i in content["model"]["vocab"].items() if word != token}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(CheckpointError, match=re.escape(token)):
        tokenizers.load(path)
