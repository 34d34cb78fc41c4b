"""A classifier that begins as a language model: its gradients, any number of ranks, going on, its figures, and what is refused."""

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
import reference_lstm
from conftest import INSTALLED, MakeAdapter
from refusals import assert_one_line_each
from test_evaluation import saved

import hvd_lm
from hvd_lm import checkpoint as checkpoints
from hvd_lm.command_line.commands import main
from hvd_lm.config import ModelConfig
from hvd_lm.data.labelled import LabelledText
from hvd_lm.data.sources import IGNORED
from hvd_lm.data.tokenizer import train_tokenizer
from hvd_lm.errors import CheckpointError, ConfigError, DataError
from hvd_lm.job.topology import arrange
from hvd_lm.model.split import shares
from hvd_lm.model.weights import initial_weights
from hvd_lm.tasks import classifier, sentiment, state_features
from hvd_lm.tasks.class_figures import class_figures
from hvd_lm.tasks.classifier import ClassEvaluateConfig, ClassPredictConfig
from hvd_lm.tasks.held_apart import held_apart
from hvd_lm.tasks.labels import examples
from hvd_lm.tasks.sentiment import SentimentTrainConfig

TOPICS = {"specialnames": "names", "debugger": "debugger", "formatstrings": "text"}


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sentences of Python's manual, and the topic that each is of."""
    from pydoc_data.topics import topics

    rows = []
    for topic, label in TOPICS.items():
        sentences = " ".join(topics[topic].split()).split(". ")
        rows += [(sentence, label) for sentence in sentences if 5 < len(sentence.split()) < 40][:60]
    assert len(rows) > 150
    path = tmp_path_factory.mktemp("labelled") / "sentences.tsv"
    path.write_text("label\ttext\n" + "".join(f"{label}\t{text}\n" for text, label in rows))
    return path


@pytest.fixture(scope="module")
def language_model(labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of their words; untrained."""
    tokenizer = train_tokenizer([labelled.read_text()], "word", 800)
    _, example = saved(tmp_path_factory.mktemp("other"))
    model = ModelConfig(tokenizer.vocabulary_size, embedding_size=20, hidden_size=(24, 16), dropout=0.1)
    folder = tmp_path_factory.mktemp("model")
    progress = replace(example.progress, lstm_state_2SU=np.zeros((2, 4, 40), np.float32))
    weights = initial_weights(model, 1)
    made = replace(example, model=model, weights=weights, tokenizer=tokenizer, progress=progress)
    checkpoints.save(replace(made, optimizer_state=replace(made.optimizer_state, moments={})), folder, keep=1)
    return folder


def flags(labelled: Path, language_model: Path, out: Path, framework: str, *more: str) -> list[str]:
    return [
        "train", "--checkpoint", str(language_model), "--data", str(labelled), "--out", str(out), "--framework", framework,
        "--learning-rate", "0.01", "--threads", "1", "--dropout", "0.2", *more,
    ]  # fmt: skip


# --- learning --------------------------------------------------------------------------------------------


def test_gradients_of_classes(make_adapter: MakeAdapter) -> None:
    """Judged by the reference; the class is said after the last token of each text, and texts are of different lengths."""
    model = ModelConfig(30, embedding_size=6, hidden_size=(8, 5), classes=("a", "b", "c"))
    weights = {name: 3 * array for name, array in initial_weights(model, seed=3).items()}
    assert weights["class_kernel"].shape == (3, 5)
    adapter = make_adapter(model)
    adapter.load_weights(weights)
    generator = np.random.default_rng(1)
    inputs_TB = generator.integers(0, 30, (7, 4), dtype=np.int32)
    targets_TB = np.full((7, 4), IGNORED, np.int32)
    targets_TB[[6, 5, 2, 0], range(4)] = [0, 2, 1, 2]
    adapter.accumulate(inputs_TB, targets_TB, adapter.zero_state(4), weight=0.25, last=True)
    named = {name.replace("class_", "output_"): array for name, array in weights.items()}
    judged = reference_lstm.run(named, inputs_TB, targets_TB)
    for name, gradient in adapter.gradients().items():
        expected = 0.25 * judged.gradients[name.replace("class_", "output_")]
        np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-6, err_msg=name)
    assert adapter.step(learning_rate=0.1, clip=None, unscale=1.0).loss_sum == pytest.approx(judged.loss_sum, rel=1e-5)


@pytest.mark.ranks
def test_ranks_learn_as_one(framework: str, labelled: Path, language_model: Path, tmp_path: Path) -> None:
    """And what they learn is true: of sentences that no rank has learned from, too."""
    rows, found = {}, {}
    for ranks in (1, 2):
        out = tmp_path / str(ranks)
        more = ("--batch-size", str(16 // ranks), "--epochs", "12", "--backward-passes-per-step", "2")
        pools.hvd_lm(ranks, "sentiment", *flags(labelled, language_model, out, framework, *more), framework=framework)
        rows[ranks] = launcher.metrics(out)
        ended = pools.hvd_lm(
            ranks, "sentiment", "evaluate", "--checkpoint", out, "--data", labelled, "--framework", framework, "--batch-size", "9",
            framework=framework,
        )  # fmt: skip
        found[ranks] = json.loads(ended.output[ended.output.index("{") : ended.output.rindex("}") + 1])
    for name in ("loss", "validation_loss", "accuracy"):
        # Later, rounding grows in what is learned from so few.
        of_ranks = [[row.get(name, 0.0) for row in rows[ranks][:30]] for ranks in (1, 2)]
        np.testing.assert_allclose(of_ranks[1], of_ranks[0], rtol=1e-5)
    assert [row["tokens"] for row in rows[1]] == [row["tokens"] for row in rows[2]]
    assert rows[1][-1]["tokens"] % 8 == 0, "each sentence is learned from once in an epoch"
    assert max(row.get("accuracy", 0.0) for row in rows[1]) > 0.6
    assert min(its["accuracy"] for its in found.values()) > 0.8


@pytest.mark.ranks
@pytest.mark.parametrize("ranks", [(1, 1), (2, 2), (2, 1)])
def test_a_run_goes_on(framework: str, ranks: tuple[int, int], labelled: Path, language_model: Path, tmp_path: Path) -> None:
    """In the middle of an epoch: bit for bit on the same ranks; on others with the same sentences, each of them once."""
    whole, rest = tmp_path / "whole", tmp_path / "rest"
    more = ("--epochs", "2", "--deterministic", "--keep-checkpoints", "99", "--checkpoint-every", "4", "--batch-size")
    first = flags(labelled, language_model, whole, framework, *more, str(8 // ranks[0]))
    second = flags(labelled, language_model, rest, framework, *more, str(8 // ranks[1]))
    pools.hvd_lm(ranks[0], "sentiment", *first, framework=framework)
    earlier = whole / checkpoints.FOLDER / "step-00000004"
    pools.hvd_lm(ranks[1], "sentiment", *second, "--resume", str(earlier), framework=framework)
    of_both = [[[row[name] for name in ("step", "tokens", "loss")] for row in launcher.metrics(out)] for out in (whole, rest)]
    if ranks[0] == ranks[1]:
        assert of_both[1] == of_both[0][4:]
    else:
        np.testing.assert_allclose(of_both[1], of_both[0][4:], rtol=1e-3)


def test_the_language_model_is_the_start(framework: str, labelled: Path, language_model: Path, tmp_path: Path) -> None:
    """Its embedding and its cells; what judges classes comes from the seed."""
    config = SentimentTrainConfig(
        language_model, labelled, out=tmp_path / "run", framework=framework, epochs=1, threads=1,  # type: ignore[arg-type]
        optimizer=hvd_lm.OptimizerConfig(learning_rate=1e-9),
    )  # fmt: skip
    result = sentiment.train(config)
    made, begun = checkpoints.load(tmp_path / "run"), checkpoints.load(language_model)
    assert made.model.classes == tuple(sorted(TOPICS.values()))
    assert set(made.weights) - set(begun.weights) == {"class_kernel", "class_bias"}
    for name in set(made.weights) & set(begun.weights):
        np.testing.assert_allclose(made.weights[name], begun.weights[name], atol=1e-6, err_msg=name)
    assert result.validation is not None
    assert result.validation.accuracy is not None


def test_train_begins_with_the_weights_of_another(framework: str, labelled: Path, tmp_path: Path) -> None:
    """A language model on another text, too."""
    text = tmp_path / "text.txt"
    text.write_text(labelled.read_text())
    config = hvd_lm.RunConfig(
        framework=framework, out=tmp_path / "first", steps=2, threads=1,  # type: ignore[arg-type]
        model=hvd_lm.ModelConfig(300, embedding_size=6, hidden_size=8),
        data=hvd_lm.DataConfig(text, batch_size=4, sequence_length=8),  # type: ignore[arg-type]
    )  # fmt: skip
    first = hvd_lm.train(config)
    still = replace(config.optimizer, learning_rate=1e-9)
    hvd_lm.train(replace(config, out=tmp_path / "second", initial_weights=first.out, seed=7, optimizer=still))
    weights = [checkpoints.load(tmp_path / name).weights for name in ("first", "second")]
    for name, array in weights[0].items():
        np.testing.assert_allclose(weights[1][name], array, atol=1e-6, err_msg=name)
    larger = replace(config, out=tmp_path / "third", initial_weights=first.out, model=replace(config.model, hidden_size=9))
    with pytest.raises(CheckpointError, match=r"lstm\.0\.input_kernel has shape \[32, 6\] there, this run wants \[36, 6\]"):
        hvd_lm.train(larger)
    fewer = replace(config, out=tmp_path / "fourth", initial_weights=first.out, model=replace(config.model, vocabulary_size=200))
    with pytest.raises(DataError, match="another tokenizer"):
        hvd_lm.train(fewer)


# --- judging ---------------------------------------------------------------------------------------------


def test_figures_of_classes() -> None:
    """By hand: of class a 2 of 3 are found, of b 1 of 1; nothing is of c, and one is taken for it."""
    taken = np.log(np.array([[8, 1, 1], [8, 1, 1], [1, 1, 8], [1, 8, 1]], np.float32) / 10)
    figures = class_figures(("a", "b", "c"), taken, np.array([0, 0, 0, 1], np.int32))
    assert figures.counts_CC.tolist() == [[2, 0, 1], [0, 1, 0], [0, 0, 0]]
    assert figures.accuracy == 0.75
    assert figures.loss == pytest.approx(-(3 * np.log(0.8) + np.log(0.1)) / 4, rel=1e-6)
    told = json.loads(json.dumps(figures.to_dict()))["classes"]
    assert told["a"] == {"texts": 3, "precision": 1.0, "recall": pytest.approx(2 / 3), "f1": pytest.approx(0.8)}
    assert told["b"] == {"texts": 1, "precision": 1.0, "recall": 1.0, "f1": 1.0}
    assert told["c"] == {"texts": 0, "precision": 0.0, "recall": None, "f1": 0.0}
    assert figures.png().startswith(b"\x89PNG")


def test_a_classifier_is_asked(
    framework: str,
    labelled: Path,
    language_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By its best checkpoint; of standard input, of a file, and as JSON: the same."""
    out = tmp_path / "run"
    assert main(["sentiment", *flags(labelled, language_model, out, framework, "--epochs", "6")]) == 0
    assert "validation accuracy" in capsys.readouterr().out
    texts = [row.split("\t")[1] for row in labelled.read_text().splitlines()[1:9]]
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(texts))
    config = ClassPredictConfig(out, path, framework=framework, threads=1)  # type: ignore[arg-type]
    predicted = classifier.predict(config)
    assert len(predicted) == len(texts)
    for its in predicted:
        assert sum(its.probabilities.values()) == pytest.approx(1, abs=1e-5)
        assert its.label == max(its.probabilities, key=lambda name: its.probabilities[name])
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(path.read_bytes())))
    asked = ["sentiment", "predict", "--checkpoint", str(out), "--framework", framework]
    assert main(asked) == 0
    rows = [row.split("\t") for row in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows] == [its.label for its in predicted]
    assert main([*asked, "--json", "--data", str(labelled)]) == 0
    first = json.loads(capsys.readouterr().out.splitlines()[0])
    assert first["probabilities"] == pytest.approx(predicted[0].probabilities, abs=1e-5)
    picture = tmp_path / "confusion.png"
    judged = classifier.evaluate(ClassEvaluateConfig(out, labelled, framework=framework, threads=1, picture=picture))  # type: ignore[arg-type]
    assert judged.texts == len(labelled.read_text().splitlines()) - 1
    assert picture.read_bytes() == judged.png()


# --- refusals --------------------------------------------------------------------------------------------


def test_a_part_is_held_apart() -> None:
    texts = [LabelledText(str(number), "a") for number in range(100)]
    kept, apart = held_apart(texts, 0.2)
    assert len(apart) == 20
    assert sorted([*kept, *apart], key=lambda its: int(its.text)) == texts
    assert held_apart(texts, 0.2) == (kept, apart)


def test_a_long_text_is_cut_at_its_beginning(language_model: Path) -> None:
    tokenizer = checkpoints.load_model(language_model).tokenizer
    texts = [LabelledText("the of and", "b")]
    found = examples(texts, ("a", "b"), tokenizer, 3)
    whole = examples(texts, ("a", "b"), tokenizer, 99, everywhere=True)
    assert whole.inputs_N.tolist()[2:] == found.inputs_N.tolist()
    assert (found.targets_N.tolist(), whole.targets_N.tolist()) == ([IGNORED, IGNORED, 1], [1] * 5)
    assert whole.inputs_N[0] == whole.inputs_N[-1] == tokenizer.end_of_line_id


def test_refused(labelled: Path, language_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each in one line, before anything is written."""
    one, other = tmp_path / "one.tsv", tmp_path / "other.tsv"
    one.write_text("text\tlabel\nthe cat\tx\nthe dog\tx\n")
    other.write_text("text\tlabel\nthe cat\ttext\nthe dog\tunheard\n")
    out = tmp_path / "out"
    cases = {
        "all 2 texts have the label x": ("--data", str(one), "--validation-share", "0"),
        "the label unheard is none of those": ("--validation-data", str(other)),
        "no text is left to train on": ("--data", str(one), "--validation-share", "0.9"),
        "--target-batch counts tokens": ("--target-batch", "4096"),
        "has no column body and label": ("--text-column", "body"),
        "--validation-share must be in": ("--validation-share", "1"),
        "no checkpoint in": ("--checkpoint", str(tmp_path / "nowhere")),
        "--dropout must be in": ("--dropout", "2"),
    }
    commands = {words: ["sentiment", *flags(labelled, language_model, out, INSTALLED[0], *more)] for words, more in cases.items()}
    assert_one_line_each(commands, out, capsys)
    assert main(["sentiment", "learn"]) == 2
    assert "choose one of train, evaluate, predict" in capsys.readouterr().err


def test_a_classifier_is_no_language_model(labelled: Path, language_model: Path, tmp_path: Path) -> None:
    config = SentimentTrainConfig(language_model, labelled, out=tmp_path / "run", framework=INSTALLED[0], epochs=1, threads=1)  # type: ignore[arg-type]
    sentiment.train(config)
    for ask in (
        lambda: hvd_lm.evaluate(tmp_path / "run", labelled),
        lambda: hvd_lm.score(tmp_path / "run", ["a"]),
        lambda: next(hvd_lm.generate(tmp_path / "run", "a")),
    ):
        with pytest.raises(CheckpointError, match=r"is no language model, it tells classes apart \(debugger, names, text\)"):
            ask()
    with pytest.raises(CheckpointError, match="holds a language model"):
        classifier.predict(ClassPredictConfig(language_model, labelled))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="texts that have labels"):
        hvd_lm.train(hvd_lm.RunConfig(model=ModelConfig(classes=("a", "b"))))
    divided = arrange(hvd_lm.TopologyConfig(split="vocabulary", model_parallel=2), 0, 2)
    with pytest.raises(ConfigError, match="has no vocabulary to divide"):
        shares(ModelConfig(30, classes=("a", "b")), divided)


# --- features --------------------------------------------------------------------------------------------


@pytest.mark.ranks
def test_features_of_the_states(framework: str, labelled: Path, language_model: Path, tmp_path: Path) -> None:
    """The same regression on one rank and on two; it is asked in either framework, and has what it needs in its folder."""
    found = {}
    for ranks in (1, 2):
        out = tmp_path / str(ranks)
        more = ("--method", "features", "--batch-size", "7")
        pools.hvd_lm(ranks, "sentiment", *flags(labelled, language_model, out, framework, *more), framework=framework)
        found[ranks] = state_features.load(out, checkpoints.load_model(language_model).model)
        assert (out / "unit.png").read_bytes().startswith(b"\x89PNG")
    first, second = found[1], found[2]
    assert first is not None
    assert second is not None
    assert first.classes == second.classes == tuple(sorted(TOPICS.values()))
    assert first.strength == second.strength
    np.testing.assert_allclose(second.kernel_CU, first.kernel_CU, rtol=0.05, atol=0.05)
    judged = [
        classifier.evaluate(ClassEvaluateConfig(tmp_path / "1", labelled, framework=name, threads=1))  # type: ignore[arg-type]
        for name in INSTALLED
    ]
    assert judged[0].counts_CC.tolist() == judged[-1].counts_CC.tolist()
    assert judged[0].accuracy > 0.5, "of three classes, by the states of random weights"


def test_regression_on_what_is_known() -> None:
    """One unit tells two classes apart; the others are noise, and are left out by the strength that validation chooses."""
    generator = np.random.default_rng(1)
    features_NU = generator.normal(size=(600, 20)).astype(np.float32)
    numbers_N = (features_NU[:, 3] > 0).astype(np.int32)
    found = state_features.fitted(("a", "b"), features_NU[:400], numbers_N[:400], features_NU[400:], numbers_N[400:], 50)
    assert found.strongest_unit == 3
    assert (found.of_features(features_NU).argmax(1) == numbers_N).mean() > 0.97
    assert np.count_nonzero(found.kernel_CU[0]) == 0, "a softmax over both is the logistic function"
    three_N = (features_NU[:, 3] > 0.5).astype(np.int32) + (features_NU[:, 3] > -0.5)
    of_three = state_features.fitted(("a", "b", "c"), features_NU[:400], three_N[:400], features_NU[400:], three_N[400:], 50)
    assert of_three.kernel_CU.shape == (3, 20)


def test_damaged_regression(labelled: Path, language_model: Path, tmp_path: Path) -> None:
    config = SentimentTrainConfig(
        language_model, labelled, out=tmp_path / "run", method="features", framework=INSTALLED[0], threads=1  # type: ignore[arg-type]
    )  # fmt: skip
    regression, figures = sentiment.train_features(config)
    assert figures is not None
    with pytest.raises(ConfigError, match="exists already"):
        sentiment.train_features(config)
    path = tmp_path / "run" / "features.json"
    whole = path.read_text()
    for content in ("{", "[]", whole.replace("names", "more"), whole.replace('"most_tokens": 400', '"most_tokens": -1'), "{}"):
        path.write_text(content)
        if "more" in content:
            assert "more" in classifier.load_classifier(tmp_path / "run").classes
            continue
        with pytest.raises(CheckpointError, match="cannot be used"):
            classifier.load_classifier(tmp_path / "run")
    path.write_text(whole.replace('"names"', '"names", "another"'))
    with pytest.raises(CheckpointError, match="not float32"):
        classifier.load_classifier(tmp_path / "run")
    assert regression.used <= 40
