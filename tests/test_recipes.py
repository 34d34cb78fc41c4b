"""jobs/recipes: files that are read as they are, each line with what it means."""

from __future__ import annotations

import math
import re
from pathlib import Path

import launcher
import pools
import pytest

from hvd_lm.command_line.yaml_defaults import read_defaults, setting_types
from hvd_lm.config import ModelConfig, OptimizerConfig, RunConfig
from hvd_lm.model.stages import parameters
from hvd_lm.training.schedule import peak_learning_rate

FOLDER = Path(launcher.__file__).parents[1] / "jobs" / "recipes"
RECIPES = sorted(FOLDER.iterdir())
NAMES = [file.stem for file in RECIPES]
LARGE = FOLDER / "lstm-2048-512.yaml"


@pytest.mark.parametrize("file", RECIPES, ids=NAMES)
def test_every_line_says_what_it_means(file: Path) -> None:
    lines = file.read_text(encoding="utf-8").splitlines()
    for before, line in zip(["", *lines], lines, strict=False):
        if line and not line.startswith("#"):
            assert before.startswith("# "), line
            assert line.partition(":")[0].replace("-", "_") in setting_types(RunConfig)


def test_mlstm_4096() -> None:
    """Lengths of all rows of the layer's kernels, of nothing else; the rate of 8 ranks is that of its authors."""
    config = read_defaults(RunConfig, FOLDER / "mlstm-4096.yaml")
    model, optimizer = ModelConfig(**vars(config.model)), OptimizerConfig(**vars(config.optimizer))
    gains = {name: its.shape for name, its in parameters(model).items() if name.endswith(".gain")}
    assert sorted(gains.values()) == [(4096,)] * 2 + [(4 * 4096,)] * 2
    assert peak_learning_rate(optimizer, 8 * config.data.batch_size) == pytest.approx(4e-3)


def test_lstm_2048_512() -> None:
    """Adagrad and clipping are those of the script on its gradient, which is T times ours."""
    config = read_defaults(RunConfig, LARGE)
    model = ModelConfig(**vars(config.model))
    assert sum(math.prod(parameter.shape) for parameter in parameters(model).values()) == 822_752_126
    optimizer = OptimizerConfig(**vars(config.optimizer))
    assert optimizer.initial_accumulator * config.data.sequence_length**2 == pytest.approx(1.0)
    assert (optimizer.clip or 0) * config.data.sequence_length == pytest.approx(10.0)


def test_awd_lstm() -> None:
    """As many parameters as the program counts, less one of the two biases that PyTorch has of each gate."""
    model = ModelConfig(**vars(read_defaults(RunConfig, FOLDER / "awd-lstm-ptb.yaml").model))
    assert sum(math.prod(parameter.shape) for parameter in parameters(model).values()) == 24_221_600 - 4 * (1150 + 1150 + 400)
    assert model.dropout_rates == (0.4, 0.25, 0.25, 0.4)


def twin(file: Path) -> list[str]:
    """Flags that make a small one of a recipe, as its head says; none of one that is small."""
    found = re.search(r"^# Its small twin, .* on a core, is the same file with\n# (--.*)\n", file.read_text(), re.MULTILINE)
    return found[1].split() if found else []


@pytest.mark.parametrize("file", RECIPES, ids=NAMES)
def test_large_ones_have_small_twins(file: Path) -> None:
    model = ModelConfig(**vars(read_defaults(RunConfig, file).model))
    is_large = sum(math.prod(parameter.shape) for parameter in parameters(model).values()) > 10_000_000
    assert bool(twin(file)) == is_large


@pytest.mark.ranks
@pytest.mark.parametrize("file", RECIPES, ids=NAMES)
def test_a_recipe_trains(framework: str, file: Path, tmp_path: Path) -> None:
    """A few steps of it, or of its small twin, with the other settings as they are."""
    text, prepared = tmp_path / "text.txt", tmp_path / "prepared"
    text.write_text("".join(f"the w{number % 97} of w{number % 89}\n" for number in range(9000)))
    is_of_bytes = "--tokenizer byte" in file.read_text()
    pools.hvd_lm(1, "prepare", text, "--out", prepared, *(["--tokenizer", "byte"] if is_of_bytes else []), framework=framework)
    flags: list[str | Path] = [*twin(file), "--sequence-length", "20", "--steps", "3", "--threads", "1"]
    flags += [] if is_of_bytes else ["--vocabulary-size", "101"]
    flags += ["--sampled-words", "50"] if "sampled-words" in file.read_text() else []
    flags += ["--framework", framework, "--data", prepared, "--out", tmp_path / "run"]
    ended = pools.hvd_lm(1, "train", "--config", file, *flags)
    assert "has no effect" not in ended.output
    assert "test loss" in ended.output
