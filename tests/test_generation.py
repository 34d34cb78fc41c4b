"""Writing text: the same in every framework, one step a token, streamed, stopped, several at once, and by beam search."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import launcher
import numpy as np
import pools
import pytest
import reference_lstm
from conftest import INSTALLED
from hypothesis import given
from hypothesis import strategies as st

import hvd_lm
from hvd_lm import checkpoint as checkpoints
from hvd_lm.adapters.base import OptimizerState
from hvd_lm.checkpoint import Checkpoint, Progress
from hvd_lm.config import ModelConfig, OptimizerConfig
from hvd_lm.data.sources import Position
from hvd_lm.data.tokenizer import TokenizerKind, train_tokenizer
from hvd_lm.errors import CheckpointError, ConfigError
from hvd_lm.generation.sampling import SamplingConfig
from hvd_lm.generation.text import GenerateConfig, TextGenerator, _GrowingText, generate
from hvd_lm.model.stages import state_size
from hvd_lm.model.weights import initial_weights

TEXT = "the cat sat on the mat . a dog saw it !\nnaïve 🙂 cats\n" * 5


def save_random_model(folder: Path, kind: TokenizerKind = "word", scale: float = 4.0, **changes: Any) -> Path:
    tokenizer = train_tokenizer([TEXT], kind, 264 if kind == "bpe" else None)
    model = replace(ModelConfig(tokenizer.vocabulary_size, embedding_size=8, hidden_size=12, layers=2), **changes)
    weights = {name: np.float32(scale) * array for name, array in initial_weights(model, seed=3).items()}
    progress = Progress(0, Position((), 1, 1, 0), 0, 0, 0.0, "", np.zeros((2, 1, state_size(model)), np.float32))
    state = OptimizerState(0, {})
    checkpoints.save(Checkpoint(1, model, OptimizerConfig("sgd"), weights, state, tokenizer, progress), folder, keep=1)
    return folder


def log_probabilities(checkpoint: Checkpoint, ids: tuple[int, ...]) -> np.ndarray:
    """Of the token after each of <eos> and `ids`, ``[len(ids) + 1, V]``; <unk> impossible; by the judge."""
    inputs = np.array([checkpoint.tokenizer.end_of_line_id, *ids], np.int32)[:, None]
    logits = reference_lstm.run(checkpoint.weights, inputs, inputs).logits_TBV[:, 0]
    logits[:, checkpoint.tokenizer.unknown_id] = -np.inf
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


# --- drawing ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["word", "char", "byte", "bpe"])
def test_frameworks_write_the_same_text(kind: TokenizerKind, tmp_path: Path) -> None:
    save_random_model(tmp_path, kind)
    sampling = SamplingConfig(temperature=0.9, top_p=0.9, seed=5)
    texts = [
        "".join(generate(tmp_path, "the cat", length=200, sampling=sampling, framework=framework, threads=1))  # type: ignore[arg-type]
        for framework in INSTALLED
    ]
    assert len(set(texts)) == 1
    assert len(texts[0]) > 100


def test_the_likeliest_tokens_are_those_of_the_judge(framework: str, tmp_path: Path) -> None:
    save_random_model(tmp_path)
    checkpoint = checkpoints.load(tmp_path)
    prompt = tuple(checkpoint.tokenizer.encode_prompt("the cat").tolist())
    written: tuple[int, ...] = ()
    for _ in range(12):
        written += (int(log_probabilities(checkpoint, prompt + written)[-1].argmax()),)
    writer = TextGenerator(tmp_path, framework=framework, threads=1)  # type: ignore[arg-type]
    text = "".join(writer.stream("the cat", length=12, sampling=SamplingConfig(temperature=0)))
    assert text == "".join(checkpoint.tokenizer.pieces(written, after="the cat"))


def test_samples_are_the_same_for_any_count(framework: str, tmp_path: Path) -> None:
    writer = TextGenerator(save_random_model(tmp_path), framework=framework, threads=1)  # type: ignore[arg-type]
    five = writer.samples("the", 5, length=30)
    assert len(set(five)) == 5
    assert writer.samples("the", 2, length=30) == five[:2]
    assert ["".join(writer.stream("the", length=30))] == five[:1]
    assert writer.samples("the", 2, length=30, sampling=SamplingConfig(seed=2)) != five[:2]


def test_unknown_is_never_written_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    writer = TextGenerator(save_random_model(tmp_path), threads=1)
    text = writer.samples("zebra the Yak", length=400)[0]
    assert "<unk>" not in text
    assert capsys.readouterr().err == "hvd-lm: warning: not in the vocabulary, read as <unk>: zebra Yak\n"


@pytest.mark.parametrize("kind", ["word", "char", "byte", "bpe"])
def test_a_text_ends_before_a_stop_string(kind: TokenizerKind, tmp_path: Path) -> None:
    writer = TextGenerator(save_random_model(tmp_path, kind), threads=1)
    whole = writer.samples("the", 3, length=120)
    stop = [whole[0][20:22], whole[1][50:53]]
    for text, cut in zip(whole, writer.samples("the", 3, length=120, stop=stop), strict=True):
        ends = [place for word in stop if (place := text.find(word)) >= 0]
        assert cut == text[: min(ends, default=len(text))]
    assert "".join(writer.stream("the", length=120, stop=stop)) == writer.samples("the", length=120, stop=stop)[0]


def test_one_stop_string_is_not_its_letters(tmp_path: Path) -> None:
    writer = TextGenerator(save_random_model(tmp_path), threads=1)
    whole = writer.samples("the", length=120)[0]
    stop = whole[20:23]
    assert writer.samples("the", length=120, stop=stop) == [whole[: whole.find(stop)]]
    assert "".join(generate(tmp_path, "the", length=120, stop=stop, threads=1)) == whole[: whole.find(stop)]
    assert writer.beam_search("the", 2, length=9, stop=" ") == writer.beam_search("the", 2, length=9, stop=[" "])
    assert GenerateConfig(tmp_path, stop="\\nab").stop == ("\nab",)  # type: ignore[arg-type]
    for empty in ("", ["a", ""]):
        with pytest.raises(ConfigError, match="--stop needs a string that is not empty"):
            writer.samples("the", stop=empty)
    with pytest.raises(ConfigError, match="--checkpoint must be a path"):
        TextGenerator("")


def test_evaluate_takes_one_text(tmp_path: Path) -> None:
    save_random_model(tmp_path)
    (tmp_path / "e.txt").write_text(TEXT)
    one = hvd_lm.evaluate(tmp_path, str(tmp_path / "e.txt"), threads=1)
    assert one == hvd_lm.evaluate(tmp_path, [tmp_path / "e.txt"], threads=1)
    assert one.text.lines == TEXT.count("\n")


@given(pieces=st.lists(st.text("ab", max_size=3), max_size=20), stop=st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_what_is_shown_is_never_taken_back(pieces: list[str], stop: list[str]) -> None:
    tokenizer = train_tokenizer(["ab\n"], "char")
    ids = [int(token) for piece in pieces for token in tokenizer.encode(piece)]
    growing, shown = _GrowingText(tokenizer, "", stop), ""
    whole = "".join(pieces)
    for index, token in enumerate(ids):
        shown += growing.add(token, last=index == len(ids) - 1)
        assert whole.startswith(shown)
    ends = [place for word in stop if (place := whole.find(word)) >= 0]
    assert shown == whole[: min(ends, default=len(whole))]


def test_a_diverged_model_says_so(tmp_path: Path) -> None:
    save_random_model(tmp_path, scale=float("nan"))
    with pytest.raises(CheckpointError, match="predictions are not finite"):
        TextGenerator(tmp_path, threads=1).samples("the")


def what_is_asked(writer: TextGenerator, monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Filled with the shapes of all inputs and of the logits for them, whichever way the adapter is asked."""
    asked: list[tuple[tuple[int, ...], tuple[int, ...]]] = []

    def watch(method: str) -> None:
        original = getattr(writer._adapter, method)

        def watched(inputs_TB, *arguments):  # type: ignore[no-untyped-def]
            answer = original(inputs_TB, *arguments)
            asked.append((inputs_TB.shape, answer[0].shape))
            return answer

        monkeypatch.setattr(writer._adapter, method, watched)

    for method in ("logits", "next_logits"):
        watch(method)
    return asked


@pytest.mark.parametrize("words", [1, 300])
def test_a_prompt_is_read_once_and_costs_the_logits_of_its_last_token_alone(
    framework: str, words: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = TextGenerator(save_random_model(tmp_path), framework=framework, threads=1)  # type: ignore[arg-type]
    vocabulary, prompt = writer.tokenizer.vocabulary_size, " ".join(["cat"] * words)
    asked = what_is_asked(writer, monkeypatch)
    writer.samples(prompt, 16, length=3)
    assert asked == [((1 + words, 1), (1, vocabulary)), *[((1, 16), (16, vocabulary))] * 2]
    asked.clear()
    writer.beam_search(prompt, beams=5, length=3)
    assert asked == [((1 + words, 1), (1, vocabulary)), *[((1, 5), (5, vocabulary))] * 2]


ADAPTIVE = {"softmax": "adaptive", "adaptive_cutoffs": (4, 7), "adaptive_division": 2}
CHANGES = {
    "widths": {"hidden_size": (9, 12)},
    "mlstm": {"cell": "mlstm"},
    "projected": {"projection_size": 5},
    "adaptive": ADAPTIVE,
}


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_other_models_write_what_the_judge_says(framework: str, changes: dict[str, Any], tmp_path: Path) -> None:
    save_random_model(tmp_path, **changes)
    checkpoint = checkpoints.load(tmp_path)
    written: tuple[int, ...] = ()
    for _ in range(12):
        written += (int(log_probabilities(checkpoint, written)[-1].argmax()),)
    writer = TextGenerator(tmp_path, framework=framework, threads=1)  # type: ignore[arg-type]
    (found,) = writer.beam_search(beams=1, length=12)
    assert found.ids == written


# --- beam search -----------------------------------------------------------------------------------------


def test_a_wide_search_finds_the_likeliest_text(framework: str, tmp_path: Path) -> None:
    """All continuations of three tokens, by the judge."""
    save_random_model(tmp_path)
    checkpoint = checkpoints.load(tmp_path)
    vocabulary = checkpoint.tokenizer.vocabulary_size
    prompt = tuple(checkpoint.tokenizer.encode_prompt("the").tolist())
    totals = {}
    for pair in itertools.product(range(vocabulary), repeat=2):
        along = log_probabilities(checkpoint, prompt + pair)[len(prompt) :]
        start = along[0, pair[0]] + along[1, pair[1]]
        totals |= {(*pair, third): start + along[2, third] for third in range(vocabulary)}
    best = sorted(totals, key=totals.__getitem__, reverse=True)[:5]
    writer = TextGenerator(tmp_path, framework=framework, threads=1)  # type: ignore[arg-type]
    found = writer.beam_search("the", beams=vocabulary**2, length=3)
    assert [hypothesis.ids for hypothesis in found[:5]] == best
    np.testing.assert_allclose([h.log_probability for h in found[:5]], [totals[ids] for ids in best], rtol=1e-5)
    assert found[0].text == "".join(checkpoint.tokenizer.pieces(best[0], after="the"))


def test_one_beam_is_the_likeliest_token_each_time(tmp_path: Path) -> None:
    writer = TextGenerator(save_random_model(tmp_path), threads=1)
    (found,) = writer.beam_search("the", beams=1, length=20)
    assert found.text == writer.samples("the", length=20, sampling=SamplingConfig(temperature=0))[0]


def test_more_beams_find_likelier_texts(tmp_path: Path) -> None:
    writer = TextGenerator(save_random_model(tmp_path, scale=9.0), threads=1)
    gains = []
    for prompt in ("", "the cat", "a dog", "on the mat"):
        one, many = (writer.beam_search(prompt, beams=beams, length=15)[0].log_probability for beams in (1, 20))
        gains.append(many - one)
    assert min(gains) > -1e-4
    assert max(gains) > 0.1


def test_beams_end_at_a_stop_string(tmp_path: Path) -> None:
    writer = TextGenerator(save_random_model(tmp_path), threads=1)
    stop = [writer.beam_search("the", beams=6, length=12)[0].text.split()[2], "\n"]
    found = writer.beam_search("the", beams=6, length=12, stop=stop)
    assert len(found) == 6
    assert not any(word in h.text for h in found for word in stop)
    assert any(len(h.ids) < 12 for h in found)
    scores = [h.score(1.0) for h in found]
    assert scores == sorted(scores, reverse=True)
    by_total = [h.log_probability for h in writer.beam_search("the", beams=6, length=12, length_penalty=0.0, stop=stop)]
    assert by_total == sorted(by_total, reverse=True)


# --- by the command line ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"length": 0}, "--length must be at least 1"),
        ({"samples": 0}, "--samples must be at least 1"),
        ({"beams": -1}, "--beams must not be negative"),
        ({"beams": 2, "samples": 3}, "--samples 3 needs as many --beams, not 2"),
        ({"stop": ("",)}, "--stop needs a string"),
        ({"interactive": True, "samples": 2}, "use it without --samples and --beams"),
        ({"interactive": True, "beams": 2}, "use it without --samples and --beams"),
    ],
)
def test_settings_that_cannot_work(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        GenerateConfig(Path("run"), **settings)  # type: ignore[arg-type]


def test_what_a_person_sees(tmp_path: Path) -> None:
    save_random_model(tmp_path)

    command = ["generate", "--checkpoint", tmp_path, "--prompt", "The cat", "--length", "9"]

    def see(*flags: str) -> str:
        return pools.hvd_lm(1, *command, *flags, framework="torch").output

    one = launcher.hvd_lm(1, *command).expect_success().output
    assert one.startswith("The cat")
    assert "warning" not in one
    several = see("--samples", "2", "--stop", "\\n")
    assert [line for line in several.splitlines() if line.startswith("---")] == ["--- 1 of 2 ---", "--- 2 of 2 ---"]
    assert len(several.splitlines()) == 4
    assert see("--beams", "3").startswith("The cat")
    refused = launcher.hvd_lm(1, "generate", "--checkpoint", tmp_path, "--length", "0")
    assert refused.code == 2
    assert refused.output == "hvd-lm: error: --length must be at least 1, not 0 (see hvd-lm generate --help)\n"


@pytest.mark.ranks
@pytest.mark.parametrize("controller", ["gloo", "mpi"])
def test_one_rank_of_a_job_writes_and_waits_for_no_other(tmp_path: Path, controller: str) -> None:
    save_random_model(tmp_path)
    command = ["generate", "--checkpoint", tmp_path, "--prompt", "The cat", "--length", "9"]
    output = launcher.hvd_lm(2, *command, controller=controller, timeout=100).expect_success().output
    assert output.count("The cat") == 1
