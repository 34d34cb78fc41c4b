"""Settings of YAML files: types, sections, what is refused and with which words, and that flags win."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from parsing import check_one_line, flags, refused_flags, refused_yaml, yaml_and_flags

from hvd_lm.command_line.flags import parse_with_yaml
from hvd_lm.config import (
    ModelConfig,
    RunConfig,
)
from hvd_lm.errors import ConfigError


def test_sections_and_flat_names_mean_the_same(tmp_path: Path) -> None:
    flat = yaml_and_flags(tmp_path, "layers: 3\nbatch_size: 4\nseed: 9\n")
    assert yaml_and_flags(tmp_path, "model: {layers: 3}\ndata: {batch_size: 4}\nseed: 9\n") == flat
    assert (flat.model.layers, flat.data.batch_size, flat.seed) == (3, 4, 9)


def test_hyphens_and_underscores_mean_the_same(tmp_path: Path) -> None:
    assert yaml_and_flags(tmp_path, "batch-size: 4\n").data.batch_size == 4
    assert yaml_and_flags(tmp_path, "batch_size: 4\n").data.batch_size == 4


@pytest.mark.parametrize(
    "content", ["data: [a, b]", "data:\n  - a\n  - b\n", "data: {data: [a, b]}", "data:\n  data: [a, b]\n  batch_size: 8\n"]
)
def test_list(tmp_path: Path, content: str) -> None:
    assert yaml_and_flags(tmp_path, content).data.data == (Path("a"), Path("b"))


def test_single_value_and_empty_list(tmp_path: Path) -> None:
    assert yaml_and_flags(tmp_path, "data: a b.txt").data.data == (Path("a b.txt"),)
    assert yaml_and_flags(tmp_path, "data: []").data.data == ()


@pytest.mark.parametrize(("word", "value"), [("true", True), ("yes", True), ("false", False), ("off", False)])
def test_boolean(tmp_path: Path, word: str, value: bool) -> None:
    assert yaml_and_flags(tmp_path, f"autotune: {word}").communication.autotune is value


@pytest.mark.parametrize("word", ["null", "~", "", "None"])
def test_null(tmp_path: Path, word: str) -> None:
    assert yaml_and_flags(tmp_path, f"clip: {word}").optimizer.clip is None


def test_null_for_a_list_is_no_file(tmp_path: Path) -> None:
    """``data:`` with nothing behind it, as a template leaves it."""
    assert yaml_and_flags(tmp_path, "data:\n").data.data == ()


@pytest.mark.parametrize("name", ["out", "hidden_size", "batch_size", "seed"])
def test_null_for_a_setting_that_needs_a_value_is_refused(tmp_path: Path, name: str) -> None:
    assert f"run.yaml: {name} needs a value" in refused_yaml(tmp_path, f"{name}: null\n")


def test_null_for_layers_is_as_if_they_were_not_given(tmp_path: Path) -> None:
    assert yaml_and_flags(tmp_path, "layers: null\nhidden_size: [7, 8, 9]\n").model.layers == 3


@pytest.mark.parametrize(("written", "value"), [("1e-4", 1e-4), ("1.0e-04", 1e-4), (".5", 0.5), ("2", 2.0)])
def test_number_formats(tmp_path: Path, written: str, value: float) -> None:
    """YAML 1.1 reads 1e-4 as a text: it must still be the number."""
    assert yaml_and_flags(tmp_path, f"learning_rate: {written}").optimizer.learning_rate == value


def test_value_that_looks_like_a_flag(tmp_path: Path) -> None:
    assert yaml_and_flags(tmp_path, "out: -run\n").out == Path("-run")
    assert yaml_and_flags(tmp_path, "out: --steps\n").out == Path("--steps")


@pytest.mark.parametrize("content", ["", "# nothing\n", "{}"])
def test_empty_file_changes_nothing(tmp_path: Path, content: str) -> None:
    assert yaml_and_flags(tmp_path, content) == RunConfig()


def test_flags_win_over_yaml(tmp_path: Path) -> None:
    content = "batch_size: 4\nautotune: true\ndata: [a, b]\nclip: null\nlayers: 3\n"
    config = yaml_and_flags(tmp_path, content, "--batch-size", "5", "--no-autotune", "--data", "c", "--clip", "2")
    assert config.data.batch_size == 5
    assert config.communication.autotune is False
    assert config.data.data == (Path("c"),)
    assert config.optimizer.clip == 2.0
    assert config.model.layers == 3


def test_flags_win_wherever_config_stands(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("seed: 4\nlayers: 3\n", encoding="utf-8")
    for argv in (["--seed", "5", "--config", str(path)], [f"--config={path}", "--seed", "5"]):
        config = flags(*argv)
        assert (config.seed, config.model.layers) == (5, 3)


@pytest.mark.parametrize("content", ["bogus: 1", "model: {bogus: 1}", "bogus: true", "bogus: [1, 2]", "bogus: {nested: 1}"])
def test_unknown_name_in_yaml(tmp_path: Path, content: str) -> None:
    assert re.search("run.yaml: unknown setting '(bogus|nested)'", refused_yaml(tmp_path, content))


@pytest.mark.parametrize(
    "content",
    [
        "a: &a [x, x]\nb: &b [*a, *a]\nout: *b\n",
        "base: &base {seed: 3}\nmodel: *base\n",
        "out: &loop [*loop]\n",
    ],
    ids=["bomb", "mapping", "loop"],
)
def test_an_alias_is_refused(tmp_path: Path, content: str) -> None:
    message = refused_yaml(tmp_path, content)
    assert "run.yaml is not valid YAML" in message
    assert "write the value out" in message


@pytest.mark.parametrize(
    "content",
    [
        "a: " + "[" * 5000,
        "seed: 0x" + "f" * 5000,
        "seed: " + "9" * 5000,
        "0x" + "f" * 5000 + ": 1",
        "{}: 1",
        "0: 1\n0: 2",
        "!!set {a}",
    ],
    ids=["deep", "hexadecimal", "long", "long name", "mapping as name", "0 twice", "set"],
)
def test_odd_content_is_refused_in_one_line(tmp_path: Path, content: str) -> None:
    assert "run.yaml" in refused_yaml(tmp_path, content)


@pytest.mark.parametrize("value", ["2026-01-01", "!!binary aGVsbG8=", "!!set {a, b}", "0x1" + "0" * 16, "-9223372036854775808000"])
def test_odd_types_are_refused_in_one_line(tmp_path: Path, value: str) -> None:
    for name in ("out", "steps", "data", "framework", "autotune"):
        assert "run.yaml" in refused_yaml(tmp_path, f"{name}: {value}")


def test_a_file_without_an_end_is_not_read() -> None:
    assert "is larger than 1 MiB" in refused_flags("--config", "/dev/zero")


def test_unknown_name_that_is_close_to_a_known_one(tmp_path: Path) -> None:
    assert "did you mean batch_size?" in refused_yaml(tmp_path, "batchsize: 3")
    assert "did you mean --batch-size?" in refused_flags("--batchsize", "3")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("steps: many", "steps must be an integer, not 'many'"),
        ("steps: '3'", "steps must be an integer, not '3'"),
        ("layers: 2.0", "layers must be an integer, not 2.0"),
        ("layers: [1, 2]", "layers must be an integer, not [1, 2]"),
        ("layers: true", "layers must be an integer, not True"),
        ("layers: |\n  one\n  two\n", "layers must be an integer, not 'one\\ntwo\\n'"),
        ("learning_rate: fast", "learning_rate must be a number, not 'fast'"),
        ("learning_rate: true", "learning_rate must be a number, not True"),
        ("clip: [1]", "clip must be a number, not [1]"),
        ("optimizer: rmsprop", "optimizer must be one of adam, adamw, sgd, asgd, adagrad, not 'rmsprop'"),
        ("optimizer: [adam]", "optimizer must be one of adam, adamw, sgd, asgd, adagrad, not ['adam']"),
        ("autotune: 1", "autotune must be true or false, not 1"),
        ("autotune: maybe", "autotune must be true or false, not 'maybe'"),
        ("out: 010", "out must be a path (in quotes, if need be), not 8"),
        ("resume: 5", "resume must be a text (in quotes, if need be), not 5"),
        ("data: [a, 3]", "data must be a list of paths, not ['a', 3]"),
    ],
)
def test_bad_type_in_yaml(tmp_path: Path, content: str, said: str) -> None:
    assert refused_yaml(tmp_path, content) == f"--config {tmp_path / 'run.yaml'}: {said}"


@pytest.mark.parametrize(
    ("content", "named"), [("dropout: 2", "--dropout"), ("tie_embedding: true", "--tie-embedding"), ("steps: 0", "--steps")]
)
def test_bad_value_in_yaml(tmp_path: Path, content: str, named: str) -> None:
    message = refused_yaml(tmp_path, content)
    assert named in message
    assert f"with --config {tmp_path / 'run.yaml'}" in message


def test_flags_mend_what_does_not_fit_in_yaml(tmp_path: Path) -> None:
    config = yaml_and_flags(
        tmp_path, "tie_embedding: true\nlayers: 0", "--embedding-size", "8", "--hidden-size", "8", "--layers", "1"
    )
    assert config.model == ModelConfig(tie_embedding=True, embedding_size=8, hidden_size=8, layers=1)


def test_message_about_a_flag_leaves_the_file_out(tmp_path: Path) -> None:
    for argv in (["--layers", "x"], ["--bogus"], ["--optimizer", "rmsprop"]):
        assert "run.yaml" not in refused_yaml(tmp_path, "layers: 3", *argv)


@pytest.mark.parametrize(
    "content",
    [
        "batch_size: 4\ndata: {batch_size: 5}\n",
        "data: {batch_size: 4}\nmodel: {batch_size: 4}\n",
        "batch_size: 4\nbatch-size: 5\n",
        "batch_size: 4\nbatch_size: 5\n",
    ],
    ids=["flat and section", "two sections", "two spellings", "same line twice"],
)
def test_setting_named_twice(tmp_path: Path, content: str) -> None:
    message = refused_yaml(tmp_path, content)
    assert "batch" in message
    assert "run.yaml" in message


@pytest.mark.parametrize("content", ["- a\n- b\n", "3", "just words"])
def test_yaml_that_is_no_mapping(tmp_path: Path, content: str) -> None:
    message = refused_yaml(tmp_path, content)
    assert "run.yaml" in message
    assert "name: value" in message


@pytest.mark.parametrize(
    "content", ["a: [1", "a\tb: : c", "a: 'open", "? [a]\n: b", "a: !!python/object:os.system x", "a: \x07", "out: 2026-13-01"]
)
def test_invalid_yaml(tmp_path: Path, content: str) -> None:
    message = refused_yaml(tmp_path, content)
    assert "run.yaml" in message
    assert "not valid YAML" in message


def test_file_that_cannot_be_read(tmp_path: Path) -> None:
    latin1 = tmp_path / "latin1.yaml"
    latin1.write_bytes(b"out: caf\xe9\n")
    for path in (tmp_path / "nowhere.yaml", tmp_path, latin1):
        message = refused_flags("--config", str(path))
        assert f"cannot read --config {path}" in message


def test_config_without_a_file() -> None:
    assert "--config needs a file" in refused_flags("--config")
    assert "--config needs a file" in refused_flags("--config", "--seed", "3")


def test_two_files(tmp_path: Path) -> None:
    for name in ("one.yaml", "two.yaml"):
        (tmp_path / name).write_text("seed: 3\n", encoding="utf-8")
    assert "takes one file, not 2" in refused_flags("--config", str(tmp_path / "one.yaml"), f"--config={tmp_path / 'two.yaml'}")


@dataclass(frozen=True)
class LayersConfig:
    """Settings of several types at once."""

    hidden_size: int | tuple[int, ...] = 1024
    """One width, or one for each layer."""
    layers: int | None = None
    """As many."""
    cell: Literal["lstm", "mlstm"] = "lstm"
    """One of two."""


@dataclass(frozen=True)
class TrialConfig:
    """A config with a section."""

    layers_of_model: LayersConfig = field(default_factory=LayersConfig)


@pytest.mark.parametrize(
    ("content", "argv", "expected"),
    [
        ("hidden_size: [1150, 1150, 400]", [], LayersConfig((1150, 1150, 400))),
        ("hidden_size: 256", [], LayersConfig(256)),
        ("layers_of_model: {hidden_size: [256], layers: 3, cell: mlstm}", [], LayersConfig((256,), 3, "mlstm")),
        ("hidden_size: [3, 4]", ["--hidden-size", "256"], LayersConfig(256)),
        ("hidden_size: 256", ["--hidden-size", "3", "4", "--cell", "mlstm"], LayersConfig((3, 4), cell="mlstm")),
        ("layers: 4", ["--layers", "None"], LayersConfig()),
    ],
)
def test_setting_of_several_types(tmp_path: Path, content: str, argv: list[str], expected: LayersConfig) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(content, encoding="utf-8")
    config = parse_with_yaml(TrialConfig, "train", ["--config", str(path), *argv])
    assert config == TrialConfig(expected)
    assert type(config.layers_of_model.hidden_size) is type(expected.hidden_size)


def test_layers_are_as_many_as_there_are_widths(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("hidden-size: [12, 10, 8]\n", encoding="utf-8")
    assert parse_with_yaml(RunConfig, "train", ["--config", str(path)]).model.units == (12, 10, 8)
    assert parse_with_yaml(RunConfig, "train", ["--config", str(path), "--hidden-size", "9"]).model.units == (9, 9)


@pytest.mark.parametrize(
    ("content", "argv", "said"),
    [
        ("hidden_size: wide", [], "hidden_size must be an integer or a list of integers, not 'wide'"),
        ("hidden_size: [3, 1.5]", [], "hidden_size must be an integer or a list of integers, not [3, 1.5]"),
        ("hidden_size:", [], "hidden_size needs a value (an integer or a list of integers)"),
        ("cell: gru", [], "cell must be one of lstm, mlstm, not 'gru'"),
        ("", ["--hidden_size", "3", "x", "--layers", "2"], "--hidden-size must be an integer or a list of integers, not '3 x'"),
        ("", ["--layers=x"], "--layers must be an integer, not 'x'"),
    ],
)
def test_bad_value_for_a_setting_of_several_types(tmp_path: Path, content: str, argv: list[str], said: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        parse_with_yaml(TrialConfig, "train", ["--config", str(path), *argv])
    assert said in check_one_line(caught.value)
