"""Figures of an evaluation: per token, word, character and byte; dynamic evaluation and the neural cache against their papers."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import reference_lstm
from conftest import MakeAdapter

from hvd_lm import checkpoint as checkpoints
from hvd_lm.adapters.base import OptimizerState
from hvd_lm.checkpoint import Checkpoint, Progress
from hvd_lm.config import ModelConfig, OptimizerConfig
from hvd_lm.data.counts import TextCounts
from hvd_lm.data.prepare import PrepareConfig, prepare
from hvd_lm.data.sources import Position
from hvd_lm.data.tokenizer import Tokenizer, TokenizerKind, train_tokenizer
from hvd_lm.errors import CheckpointError, ConfigError, DataError
from hvd_lm.evaluation.cache import CacheConfig, NeuralCache, evaluate_with_cache
from hvd_lm.evaluation.dynamic import DynamicConfig, evaluate_dynamically, step_sizes
from hvd_lm.evaluation.figures import Evaluation
from hvd_lm.evaluation.perplexity import EvaluateConfig, evaluate
from hvd_lm.model.weights import initial_weights

TEXT = "the cat sat on the mat and the dog sat on the log\nnaïve cats sit on mats too\n" * 12


def checkpoint_of(tokenizer: Tokenizer, optimizer: OptimizerConfig | None = None) -> Checkpoint:
    """A small model with random weights, and moments as Adam leaves them."""
    model = ModelConfig(tokenizer.vocabulary_size, embedding_size=6, hidden_size=8, layers=2, dropout=0.3)
    weights = {name: 3 * array for name, array in initial_weights(model, seed=3).items()}
    generator = np.random.default_rng(1)
    moments = {
        f"{moment}/{name}": (generator.random(array.shape) * 1e-4).astype(np.float32)
        for moment in ("first", "second")
        for name, array in weights.items()
    }
    position = Position(((0, 10),), streams=4, sequence_length=5, micro_batches=0)
    settings = {"communication": {"backward_passes_per_step": 3}}
    progress = Progress(0, position, 0, 0, 0.0, "", np.zeros((2, 4, 16), np.float32), settings=settings)
    return Checkpoint(7, model, optimizer or OptimizerConfig(), weights, OptimizerState(7, moments), tokenizer, progress)


def saved(folder: Path, kind: TokenizerKind = "word") -> tuple[Path, Checkpoint]:
    tokenizer = train_tokenizer([TEXT], kind, 280 if kind == "bpe" else None)
    checkpoint = checkpoint_of(tokenizer)
    checkpoints.save(checkpoint, folder, keep=1)
    return folder, checkpoint


def in_one_pass(checkpoint: Checkpoint, text: str) -> float:
    """Sum of the cross-entropy, by the judge."""
    tokens = checkpoint.tokenizer.encode(text)
    inputs = np.concatenate(([checkpoint.tokenizer.end_of_line_id], tokens[:-1])).astype(np.int32)
    return reference_lstm.run(checkpoint.weights, inputs[:, None], tokens[:, None]).loss_sum


# --- figures ---------------------------------------------------------------------------------------------


def test_figures_per_unit() -> None:
    text = TextCounts(tokens=8, characters=20, bytes=25, words=6, lines=2)
    result = Evaluation(loss=1.5, tokens=8, text=text)
    assert result.perplexity == pytest.approx(math.exp(1.5))
    assert result.word_perplexity == pytest.approx(math.exp(12 / 8))
    assert result.bits_per_character == pytest.approx(12 / 20 / math.log(2))
    assert result.bits_per_byte == pytest.approx(12 / 25 / math.log(2))
    assert Evaluation(loss=1e9, tokens=1).perplexity == math.inf
    assert math.isnan(Evaluation(loss=1.0, tokens=1).bits_per_byte)


@pytest.mark.parametrize("kind", ["word", "char", "byte", "bpe"])
def test_every_token_of_a_text_counts(framework: str, kind: TokenizerKind, tmp_path: Path) -> None:
    folder, checkpoint = saved(tmp_path / "run", kind)
    text = TEXT[:700]  # ends within a word
    (tmp_path / "text.txt").write_text(text)
    result = evaluate(folder, [tmp_path / "text.txt"], framework=framework, batch_size=3, sequence_length=7, threads=1)
    assert result.tokens == len(checkpoint.tokenizer.encode(text))
    assert result.loss * result.tokens == pytest.approx(in_one_pass(checkpoint, text), rel=1e-6)
    assert result.text.words == len(text.split())
    assert (result.text.characters, result.text.bytes) == (len(text), len(text.encode()))
    units = result.text.words + result.text.lines
    assert result.text.lines == text.count("\n") + 1
    assert math.log(result.word_perplexity) == pytest.approx(result.loss * result.tokens / units)
    if kind == "word":
        assert result.word_perplexity == pytest.approx(result.perplexity), "a word is a token"


def test_splits_of_a_prepared_folder(tmp_path: Path) -> None:
    folder, checkpoint = saved(tmp_path / "run")
    (tmp_path / "text.txt").write_text(TEXT)
    checkpoint.tokenizer.save(tmp_path / "tokenizer.json")
    prepared = prepare(
        PrepareConfig(
            text=(tmp_path / "text.txt",), out=tmp_path / "out", tokenizer_file=tmp_path / "tokenizer.json", test_share=0.3,
            validation_share=0,
        )
    )  # fmt: skip
    for split in ("training", "test"):
        result = evaluate(folder, [tmp_path / "out"], split=split, threads=1)  # type: ignore[arg-type]
        assert result.tokens == len(prepared.tokens[split])  # type: ignore[index]
        assert result.text == prepared.counts[split]  # type: ignore[index]
    with pytest.raises(DataError, match="has no validation split"):
        evaluate(folder, [tmp_path / "out"], split="validation", threads=1)


def test_folder_of_another_tokenizer_is_refused(tmp_path: Path) -> None:
    folder, _ = saved(tmp_path / "run")
    (tmp_path / "text.txt").write_text("quite another text\n" * 50)
    prepare(PrepareConfig(text=(tmp_path / "text.txt",), out=tmp_path / "out"))
    with pytest.raises(DataError, match="prepared with another tokenizer"):
        evaluate(folder, [tmp_path / "out"])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"batch_size": 0}, "--batch-size must be at least 1"),
        ({"dynamic": DynamicConfig("sgd"), "cache": CacheConfig(9)}, "use one of them"),
    ],
)
def test_settings_that_cannot_work(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        EvaluateConfig(Path("run"), **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "settings",
    [{"dynamic_rate": 0.0}, {"dynamic_decay": 1.0}, {"dynamic_segment": 0}, {"dynamic_epsilon": 0.0}],
)
def test_dynamic_settings_that_cannot_work(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"--{next(iter(settings)).replace('_', '-')} must be"):
        DynamicConfig("sgd", **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("settings", [{"cache_size": -1}, {"cache_theta": math.inf}, {"cache_lambda": 1.0}])
def test_cache_settings_that_cannot_work(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"--{next(iter(settings)).replace('_', '-')} must"):
        CacheConfig(**settings)  # type: ignore[arg-type]


# --- dynamic evaluation ----------------------------------------------------------------------------------


def dynamically_in_numpy(checkpoint: Checkpoint, text: str, config: DynamicConfig) -> float:
    """Krause et al. 2018, equations 7 and 8 (and without R: section 3), segment by segment, in float64."""
    tokens = checkpoint.tokenizer.encode(text)
    inputs = np.concatenate(([checkpoint.tokenizer.end_of_line_id], tokens[:-1])).astype(np.int32)
    first = {name: array.astype(np.float64) for name, array in checkpoint.weights.items()}
    weights = dict(first)
    correction = 1 - checkpoint.optimizer.beta2**checkpoint.optimizer_state.applied_steps
    sequences = 4 * 3
    rms = {k: np.sqrt(checkpoint.optimizer_state.moments[f"second/{k}"] * sequences / correction) for k in weights}
    mean = np.concatenate([values.ravel() for values in rms.values()]).mean()
    state, total = None, 0.0
    for start in range(0, len(tokens), config.dynamic_segment):
        segment = slice(start, start + config.dynamic_segment)
        targets = tokens[segment][:, None]
        outcome = reference_lstm.run(weights, inputs[segment][:, None], targets, state)
        state, total = outcome.state, total + outcome.loss_sum
        for name, gradient in outcome.gradients.items():
            gradient = gradient / len(targets)
            pull = config.dynamic_decay * (first[name] - weights[name])
            if config.dynamic == "rms":
                gradient = gradient / (rms[name] + config.dynamic_epsilon)
                pull = np.minimum(config.dynamic_decay * rms[name] / mean, 1.0) * (first[name] - weights[name])
            weights[name] = weights[name] + pull - config.dynamic_rate * gradient
    return total


@pytest.mark.parametrize("config", [DynamicConfig("sgd", 1.0, 0.01), DynamicConfig("rms", 0.1, 0.01, dynamic_segment=7)])
def test_dynamic_evaluation_is_that_of_the_paper(framework: str, config: DynamicConfig, tmp_path: Path) -> None:
    folder, checkpoint = saved(tmp_path / "run")
    (tmp_path / "text.txt").write_text(TEXT)
    result = evaluate(folder, [tmp_path / "text.txt"], framework=framework, dynamic=config, threads=1)
    expected = dynamically_in_numpy(checkpoint, TEXT, config)
    assert result.loss * result.tokens == pytest.approx(expected, rel=1e-5)
    assert expected < 0.97 * in_one_pass(checkpoint, TEXT), "the model learns the text while it reads it"


def test_decay_never_overshoots() -> None:
    _, decays = step_sizes(checkpoint_of(train_tokenizer([TEXT], "char")), DynamicConfig("rms", dynamic_decay=0.9))
    assert max(float(np.max(decay)) for decay in decays.values()) == 1.0


def test_rms_needs_adam(make_adapter: MakeAdapter) -> None:
    checkpoint = checkpoint_of(train_tokenizer([TEXT], "char"), OptimizerConfig(optimizer="sgd"))
    checkpoint = replace(checkpoint, optimizer_state=OptimizerState(7, {}))
    adapter = make_adapter(checkpoint.model)
    with pytest.raises(CheckpointError, match="use --dynamic sgd"):
        evaluate_dynamically(adapter, checkpoint, checkpoint.tokenizer.encode(TEXT), 0, DynamicConfig("rms"))


# --- neural cache ----------------------------------------------------------------------------------------


def cached_in_numpy(losses: np.ndarray, outputs: np.ndarray, targets: np.ndarray, config: CacheConfig) -> float:
    """Grave et al. 2017, equations 2 to 4, token by token."""
    total = 0.0
    for t, target in enumerate(targets):
        low = max(0, t - config.cache_size)
        if low == t:
            total += losses[t]
            continue
        similar = np.exp(config.cache_theta * (outputs[low:t].astype(np.float64) @ outputs[t]))
        from_cache = similar[targets[low:t] == target].sum() / similar.sum()
        total -= math.log((1 - config.cache_lambda) * math.exp(-losses[t]) + config.cache_lambda * from_cache)
    return total


@pytest.mark.parametrize("size", [1, 30, 5000])
def test_cache_is_that_of_the_paper(make_adapter: MakeAdapter, size: int, tmp_path: Path) -> None:
    _, checkpoint = saved(tmp_path)
    adapter = make_adapter(checkpoint.model)
    adapter.load_weights(checkpoint.weights)
    tokens, first = checkpoint.tokenizer.encode(TEXT), checkpoint.tokenizer.end_of_line_id
    inputs = np.concatenate(([first], tokens[:-1])).astype(np.int32)
    whole = adapter.evaluate(inputs[:, None], tokens[:, None], adapter.zero_state(1))
    config = CacheConfig(size, cache_theta=1.5, cache_lambda=0.3)
    expected = cached_in_numpy(whole.losses_TB[:, 0], whole.outputs_TBH[:, 0], tokens, config)
    loss = evaluate_with_cache(adapter, tokens, first, config, sequence_length=16)
    assert loss == pytest.approx(expected, rel=1e-6)
    if size > 1:
        assert loss < whole.losses_TB.sum()


def test_impossible_words_are_possible_through_the_cache() -> None:
    cache = NeuralCache(CacheConfig(8, 1.0, 0.25), width=2)
    states = np.ones((3, 2), np.float32)
    losses = cache.losses(np.array([1.0, 2000.0, 2000.0], np.float32), states, np.array([4, 4, 5], np.int32))
    np.testing.assert_allclose(losses, [1.0, -math.log(0.25), 2000 - math.log(0.75)])
