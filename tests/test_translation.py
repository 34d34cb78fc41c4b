"""A model that translates: what it reads, any number of ranks, its translations, and what is refused.

The texts are numbers in words, English and German, which say tens and ones the other way round: "forty two", "zwei und vierzig".
"""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import launcher
import numpy as np
import pools
import pytest
from conftest import INSTALLED, MakeAdapter
from refusals import assert_one_line_each

import hvd_lm
from hvd_lm import checkpoint as checkpoints
from hvd_lm.command_line.commands import main
from hvd_lm.config import ModelConfig
from hvd_lm.data.pairs import Pair
from hvd_lm.data.sources import IGNORED
from hvd_lm.data.tokenizer import train_tokenizer
from hvd_lm.errors import CheckpointError, ConfigError
from hvd_lm.generation.beam_search import search
from hvd_lm.model.weights import initial_weights
from hvd_lm.tasks import translation, translator
from hvd_lm.tasks.pair_examples import examples, source_ids
from hvd_lm.tasks.translation import TranslateTrainConfig
from hvd_lm.tasks.translator import TranslateApplyConfig, TranslateEvaluateConfig

ENGLISH = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
GERMAN = ["ein", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun"]
TENS = list(
    zip(
        ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"],
        ["zwanzig", "dreissig", "vierzig", "fünfzig", "sechzig", "siebzig", "achtzig", "neunzig"],
        strict=True,
    )
)


def numbers() -> list[Pair]:
    """Hundreds, tens and ones, in an order drawn by chance."""
    found = [
        Pair(f"{ENGLISH[h]} hundred {ten} {ENGLISH[one]}", f"{GERMAN[h]} hundert {GERMAN[one]} und {zehn}")
        for h in range(9)
        for ten, zehn in TENS
        for one in range(9)
    ]
    return [found[place] for place in np.random.default_rng(1).permutation(len(found))]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train.en, train.de, test.en, test.de."""
    folder, pairs = tmp_path_factory.mktemp("numbers"), numbers()
    for name, part in (("train", pairs[:560]), ("test", pairs[560:])):
        (folder / f"{name}.en").write_text("".join(f"{pair.source}\n" for pair in part))
        (folder / f"{name}.de").write_text("".join(f"{pair.target}\n" for pair in part))
    return folder


def flags(files: Path, out: Path, framework: str, *more: str) -> list[str]:
    return [
        "train", "--source", str(files / "train.en"), "--target", str(files / "train.de"), "--out", str(out), "--framework",
        framework, "--tokenizer", "word", "--embedding-size", "16", "--hidden-size", "32", "--dropout", "0.1", "--learning-rate",
        "0.04", "--threads", "1", *more,
    ]  # fmt: skip


# --- what is read ----------------------------------------------------------------------------------------


def test_examples_of_pairs() -> None:
    tokenizer = train_tokenizer(["a b c\nx y\n"], "word", None)
    a, b, c, x, y = (int(tokenizer.encode_block(word)[0]) for word in "abcxy")
    end = tokenizer.end_of_line_id
    pairs = [Pair("a b c", "x y"), Pair("c a", "y")]
    found = examples(pairs, tokenizer, 99, reverse=False)
    assert found.inputs(0).tolist() == [a, b, c, end, x, y]
    assert found.targets(0).tolist() == [IGNORED] * 3 + [x, y, end]
    assert examples(pairs, tokenizer, 99, reverse=True).inputs(1).tolist() == [a, c, end, y]
    assert source_ids("a b", tokenizer, reverse=True).tolist() == [b, a, end]
    assert len(examples(pairs, tokenizer, 6, reverse=False)) == 1, "the longer one is left out"


def test_texts_are_searched_side_by_side(make_adapter: MakeAdapter) -> None:
    """As each of them alone; of a text that has enough, none is searched for any more."""
    model = ModelConfig(30, embedding_size=8, hidden_size=12, source_end=1, source_attention=True)
    adapter = make_adapter(model)
    adapter.load_weights({name: 9 * array for name, array in initial_weights(model, seed=2).items()})
    inputs_TN = np.random.default_rng(3).integers(2, 30, (6, 4), dtype=np.int32)
    inputs_TN[-1] = 1
    tokenizer = SimpleNamespace(unknown_id=0)

    def found(columns: slice, enough: int | None) -> list[list[tuple[int, ...]]]:
        lengths = [5, 9, 7, 8][columns]
        its = search(
            adapter,
            tokenizer,
            inputs_TN[:, columns],
            beams=3,
            lengths=lengths,
            length_penalty=0.7,  # type: ignore[arg-type]
            ends=lambda ids: ids[-1] % 5 == 1,
            enough=enough,
        )
        return [[one.ids for one in of_text] for of_text in its]

    for enough in (None, 3):
        together = found(slice(0, 4), enough)
        assert together == [found(slice(n, n + 1), enough)[0] for n in range(4)]
        assert [max(map(len, of_text)) <= length for of_text, length in zip(together, [5, 9, 7, 8], strict=True)] == [True] * 4
        ended = [all(ids[-1] % 5 == 1 for ids in of_text) for of_text in together]
        assert any(ended) or enough is None


# --- learning and translating ----------------------------------------------------------------------------


@pytest.mark.ranks
def test_ranks_learn_as_one(framework: str, files: Path, tmp_path: Path) -> None:
    """And what they learn is true: of numbers that no rank has seen."""
    rows, figures = {}, {}
    for ranks in (1, 2):
        out = tmp_path / str(ranks)
        more = ("--batch-size", str(16 // ranks), "--epochs", "10")
        pools.hvd_lm(ranks, "translate", *flags(files, out, framework, *more), framework=framework)
        rows[ranks] = launcher.metrics(out)
        asked = ("--source", files / "test.en", "--target", files / "test.de", "--framework", framework, "--beams", "3")
        ended = pools.hvd_lm(ranks, "translate", "evaluate", "--checkpoint", out, *asked, framework=framework)
        figures[ranks] = json.loads(ended.output[ended.output.index("{") : ended.output.rindex("}") + 1])
    for name in ("loss", "validation_loss"):
        # Later, rounding grows in what is learned from so few.
        of_ranks = [[row.get(name, 0.0) for row in rows[ranks][:20]] for ranks in (1, 2)]
        np.testing.assert_allclose(of_ranks[1], of_ranks[0], rtol=1e-4)
    assert [row["tokens"] for row in rows[1]] == [row["tokens"] for row in rows[2]]
    for its in figures.values():
        assert its["bleu"] > 90
        assert its["chrf"] > 90
        assert its["texts"] == 88
        assert its["bleu_signature"].startswith("nrefs:1|case:mixed|eff:no|tok:13a")


@pytest.mark.ranks
def test_a_run_goes_on_bit_for_bit(framework: str, files: Path, tmp_path: Path) -> None:
    """In the middle of an epoch."""
    more = ("--epochs", "2", "--deterministic", "--keep-checkpoints", "99", "--checkpoint-every", "7", "--batch-size", "16")
    whole, rest = tmp_path / "whole", tmp_path / "rest"
    pools.hvd_lm(2, "translate", *flags(files, whole, framework, *more), framework=framework)
    earlier = whole / checkpoints.FOLDER / "step-00000007"
    pools.hvd_lm(2, "translate", *flags(files, rest, framework, *more, "--resume", str(earlier)), framework=framework)
    of_both = [[[row[name] for name in ("step", "tokens", "loss")] for row in launcher.metrics(out)] for out in (whole, rest)]
    assert of_both[1] == of_both[0][7:]


@pytest.fixture(scope="module")
def translates(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a model that has learned a little."""
    out = tmp_path_factory.mktemp("translates") / "run"
    assert main(["translate", *flags(files, out, INSTALLED[0], "--epochs", "5", "--reverse-source")]) == 0
    return out


def test_a_model_is_asked(
    framework: str, files: Path, translates: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By standard input, whatever the framework and however many side by side; an empty line stays one."""
    lines = (files / "test.en").read_text().splitlines()[:20]
    lines[3] = ""
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO("\n".join(lines).encode())))
    assert main(["translate", "apply", "--checkpoint", str(translates), "--framework", framework]) == 0
    told = capsys.readouterr().out.splitlines()
    assert len(told) == 20
    assert told[3] == ""
    assert all(text for place, text in enumerate(told) if place != 3)
    path = files / "some.txt"
    path.write_text("\n".join(lines))
    for name in INSTALLED:
        config = TranslateApplyConfig(translates, path, batch_size=1 + 2 * INSTALLED.index(name), framework=name, threads=1)  # type: ignore[arg-type]
        assert translator.apply(config) == told
    greedy = TranslateEvaluateConfig(translates, files / "test.en", target=files / "test.de", beams=1, threads=1)  # type: ignore[arg-type]
    figures = [translator.evaluate(its) for its in (greedy, replace(greedy, framework=framework))]
    assert figures[0].bleu == figures[1].bleu
    assert figures[0].texts_per_second > 0


def test_without_attention_and_with_a_tokenizer_of_another_run(files: Path, translates: Path, tmp_path: Path) -> None:
    config = TranslateTrainConfig(
        files / "train.en", files / "train.de", tokenizer_file=translates / "tokenizer.json", attention=False,  # type: ignore[arg-type]
        validation_source=files / "test.en", validation_target=files / "test.de", out=tmp_path / "run", epochs=1, threads=1,
        framework=INSTALLED[0], model=ModelConfig(embedding_size=8, hidden_size=8, tie_embedding=True),  # type: ignore[arg-type]
    )  # fmt: skip
    result = translation.train(config)
    assert result.validation is not None
    assert result.validation.tokens == 88 * 6
    made = checkpoints.load(tmp_path / "run")
    assert made.tokenizer.to_json() == checkpoints.load(translates).tokenizer.to_json()
    assert not any(name.startswith("attention") for name in made.weights)
    assert len(translator.apply(TranslateApplyConfig(tmp_path / "run", files / "test.en", threads=1))) == 88  # type: ignore[arg-type]


# --- refusals --------------------------------------------------------------------------------------------


def test_refused(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each in one line, before anything is written."""
    out = tmp_path / "out"
    cases = {
        "have 560 and 88 lines": ("--target", str(files / "test.de")),
        "no pair has at most 4 tokens": ("--sequence-length", "4"),
        "--validation-share must be in": ("--validation-share", "1"),
        "--validation-target needs --validation-source": ("--validation-target", str(files / "test.de")),
        "leave --vocabulary-size 9 away": ("--vocabulary-size", "9", "--tokenizer-file", str(tmp_path / "tokenizer.json")),
        "set by the command": ("--source-end", "1"),
        "--target-batch counts tokens": ("--target-batch", "4096"),
        "cannot read the tokenizer": ("--tokenizer-file", str(tmp_path / "nowhere.json")),
    }
    train_tokenizer(["a b\n"], "word", None).save(tmp_path / "tokenizer.json")
    commands = {words: ["translate", *flags(files, out, INSTALLED[0], *more)] for words, more in cases.items()}
    assert_one_line_each(commands, out, capsys)
    assert main(["translate", "undo"]) == 2
    assert "choose one of train, apply, evaluate" in capsys.readouterr().err


def test_a_model_that_translates_is_no_language_model(files: Path, translates: Path, tmp_path: Path) -> None:
    for ask in (
        lambda: hvd_lm.evaluate(translates, files / "test.en"),
        lambda: hvd_lm.score(translates, ["a"]),
        lambda: next(hvd_lm.generate(translates, "a")),
    ):
        with pytest.raises(CheckpointError, match=r"is no language model, it translates: hvd-lm translate apply asks it"):
            ask()
    with pytest.raises(ConfigError, match="texts and their translations"):
        hvd_lm.train(hvd_lm.RunConfig(model=ModelConfig(source_end=1)))
    hvd_lm.train(
        hvd_lm.RunConfig(
            out=tmp_path / "lm",
            steps=1,
            framework=INSTALLED[0],
            threads=1,  # type: ignore[arg-type]
            model=ModelConfig(300, embedding_size=4, hidden_size=4),
        )
    )
    with pytest.raises(CheckpointError, match="does not translate: hvd-lm translate train makes one"):
        translator.apply(TranslateApplyConfig(tmp_path / "lm", files / "test.en"))  # type: ignore[arg-type]
    for settings, words in {"beams": "--beams must be at least 1", "length_factor": "--length-factor must be above 0"}.items():
        with pytest.raises(ConfigError, match=words):
            TranslateApplyConfig(translates, **{settings: 0})
