"""What a run reads: a plain text is cut as prepare cuts it, before words are counted; what is given in vain is said."""

from __future__ import annotations

import hashlib
import os
import tracemalloc
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvd_lm.config import DataConfig
from hvd_lm.data import corpus
from hvd_lm.data import texts as module
from hvd_lm.data.corpus import embedded_corpus
from hvd_lm.data.prepare import PrepareConfig, prepare
from hvd_lm.data.texts import Texts, read_texts, read_tokens
from hvd_lm.errors import ConfigError, DataError

LINES = [f"line {i % 50} of the text , with words and {i * i % 97} numbers ." for i in range(2000)]
TEXT = "".join(f"{line}\n" for line in LINES)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    return tmp_path / "text.txt"


def assert_same(plain: Texts, prepared: Texts) -> None:
    assert plain.tokenizer.to_json() == prepared.tokenizer.to_json()
    for one, other in ((plain.training, prepared.training), (plain.validation, prepared.validation)):
        np.testing.assert_array_equal(one[: len(one)], other[: len(other)])


@pytest.mark.parametrize("share", [None, 0, 0.3])
def test_a_plain_text_is_cut_as_prepare_cuts_it(text: Path, tmp_path: Path, share: float | None) -> None:
    prepare(PrepareConfig(text=(text,), out=tmp_path / "out", validation_share=share, test_share=0))
    plain = read_texts(DataConfig(data=(text,), validation_share=share), None)
    assert_same(plain, read_texts(DataConfig(data=(tmp_path / "out",)), None))
    share = 0.05 if share is None else share
    assert len(plain.validation) == pytest.approx(share * len(plain.tokenizer.encode(TEXT)), rel=0.02)


@given(content=st.text(st.sampled_from("ab \n\té"), min_size=30, max_size=200), share=st.floats(0, 0.5))
def test_the_same_for_any_text(content: str, share: float, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("t")
    path = folder / "text.txt"
    path.write_text(f"a{content}", encoding="utf-8", newline="")
    prepare(PrepareConfig(text=(path,), out=folder / "out", validation_share=share, test_share=0))
    assert_same(
        read_texts(DataConfig(data=(path,), validation_share=share, batch_size=1), None),
        read_texts(DataConfig(data=(folder / "out",), batch_size=1), None),
    )


def test_held_out_words_are_not_in_the_vocabulary(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("known words\n" * 95 + "unheard\n" * 5)
    texts = read_texts(DataConfig(data=(tmp_path / "text.txt",), validation_share=0.034), None)
    assert texts.tokenizer.vocabulary_size == 4
    assert texts.tokenizer.decode(texts.validation[:2]) == "<unk>\n"
    older = read_texts(DataConfig(data=(tmp_path / "text.txt",), validation_share=0.034, validation_cut="tokens"), None)
    assert older.tokenizer.vocabulary_size == 5
    with pytest.raises(ConfigError, match=r"yields a vocabulary of 4 only.*--validation-cut tokens goes on with them"):
        read_texts(DataConfig(data=(tmp_path / "text.txt",), validation_share=0.034), 5)
    with pytest.raises(ConfigError, match=r"yields a vocabulary of 4 only.*or give more text$"):
        read_texts(DataConfig(data=(tmp_path / "text.txt",), validation_share=0.034), 6)


@pytest.mark.parametrize("cut", ["text", "tokens"])
def test_a_plain_text_is_held_once_and_in_small_numbers(
    cut: Literal["text", "tokens"], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each rank holds it. The strings go as the tokens come; the fingerprint, which checkpoints tell, is that of 32-bit numbers."""
    monkeypatch.setattr(corpus, "BLOCK", 1 << 14)
    path = tmp_path / "text.txt"
    path.write_text(TEXT * 8)
    tracemalloc.start()
    try:
        texts = read_texts(DataConfig(data=(path,), validation_cut=cut), None)
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    size, tokens = path.stat().st_size, len(texts.training) + len(texts.validation)
    assert texts.tokenizer.vocabulary_size < 256
    assert peak < 1.5 * (size + tokens), (peak, size, tokens)
    assert held < 2 * tokens, (held, tokens)
    hashed = hashlib.sha256(texts.tokenizer.to_json().encode())
    for part in (texts.training, texts.validation):
        hashed.update(len(part).to_bytes(8, "little") + part[:].astype(np.int32).tobytes())
    assert texts.fingerprint == hashed.hexdigest()


def test_held_out_words_of_the_embedded_corpus_are_not_either() -> None:
    texts = read_texts(DataConfig(), None)
    corpus = embedded_corpus()
    cut = corpus.index("\n", round(0.95 * len(corpus))) + 1
    unheard = set(corpus[cut:].split()) - set(corpus[:cut].split())
    assert unheard
    assert not any(map(texts.tokenizer.knows, unheard))


def test_runs_of_older_versions_find_their_text(text: Path) -> None:
    """Cut by tokens, with the words of both parts: 5 % of the tokens, wherever in a line that is."""
    older = read_texts(DataConfig(data=(text,), validation_cut="tokens"), None)
    whole = older.tokenizer.encode(TEXT)
    np.testing.assert_array_equal(np.concatenate([older.training[: len(whole)], older.validation[: len(whole)]]), whole)
    assert len(older.validation) == int(len(whole) * 0.05)


# --- what is given in vain -------------------------------------------------------------------------------


def test_share_of_a_prepared_folder(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(PrepareConfig(text=(text,), out=tmp_path / "out"))
    assert len(read_texts(DataConfig(data=(tmp_path / "out",)), None).validation)
    assert not len(read_texts(DataConfig(data=(tmp_path / "out",), validation_share=0), None).validation)
    assert capsys.readouterr().err == ""
    assert len(read_texts(DataConfig(data=(tmp_path / "out",), validation_share=0.2), None).validation)
    assert "--validation-share 0.2 has no effect" in capsys.readouterr().err
    read_texts(DataConfig(data=(text,), validation_data=(text,), validation_share=0.2), None)
    assert "--validation-share 0.2 has no effect: --validation-data is given" in capsys.readouterr().err


def test_split_of_a_plain_text(text: Path) -> None:
    tokenizer = read_texts(DataConfig(data=(text,)), None).tokenizer
    with pytest.raises(ConfigError, match="--split validation needs a folder that hvd-lm prepare made"):
        read_tokens([text], tokenizer, "validation")
    assert len(read_tokens([text], tokenizer)[0])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"validation_share": 0.1, "validation_data": ("v",)}, "the validation split has texts of its own"),
        ({"test_share": 0, "test_data": ("v",)}, "the test split has texts of its own: leave --test-share away"),
        ({"text": (), "corpus": "ptb", "validation_share": 0.1}, "the validation split has texts of its own"),
        ({"tokenizer_file": "t", "tokenizer": "word"}, "--tokenizer-file tells what a token is"),
        ({"downloads": "d"}, "--downloads needs a --corpus"),
    ],
)
def test_settings_of_prepare_that_would_have_no_effect(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        PrepareConfig(**{"text": ("a",)} | settings)  # type: ignore[arg-type]
    assert words in str(caught.value)


def test_words_in_a_text_without_blanks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "zh.txt").write_text(("天地玄黄宇宙洪荒日月盈昃辰宿列张寒来暑往秋收冬藏闰余成岁律吕调阳\n") * 40, encoding="utf-8")
    read_texts(DataConfig(data=(tmp_path / "zh.txt",)), None)
    assert "few blanks (33 characters a word)" in capsys.readouterr().err
    prepare(PrepareConfig(text=(tmp_path / "zh.txt",), out=tmp_path / "word"))
    assert "--tokenizer char or bpe" in capsys.readouterr().err
    prepare(PrepareConfig(text=(tmp_path / "zh.txt",), out=tmp_path / "char", tokenizer="char"))
    assert capsys.readouterr().err == ""


def test_a_pipe_is_not_for_several_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would read a part of it, or wait for a writer that has gone."""
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setenv("HOROVOD_RANK", "0")
    monkeypatch.setenv("HOROVOD_SIZE", "2")
    with pytest.raises(DataError, match="pipe cannot be shared by ranks: hvd-lm prepare reads it"):
        read_texts(DataConfig(data=(tmp_path / "pipe",)), None)


# --- shards are read once a host -------------------------------------------------------------------------


@pytest.mark.parametrize(("local_rank", "reads"), [("0", True), ("1", False), ("", True)])
def test_one_rank_of_a_host_checks_the_shards(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, local_rank: str, reads: bool
) -> None:
    prepare(PrepareConfig(text=(text,), out=tmp_path / "out"))
    for name, value in {"RANK": "1", "SIZE": "2", "LOCAL_RANK": local_rank}.items():
        monkeypatch.setenv(f"HOROVOD_{name}", value)
    checked: list[Path] = []
    monkeypatch.setattr(module.shards, "_check_shard", lambda path, *_: checked.append(path))
    read_texts(DataConfig(data=(tmp_path / "out",)), None)
    assert bool(checked) == reads
