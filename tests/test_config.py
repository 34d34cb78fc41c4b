"""Settings: what is refused and with which words, and how flags, YAML files and dataclasses agree."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_type_hints

import pytest
import yaml
from horovod.runner.launch import parse_args as parse_horovodrun
from hypothesis import given, settings
from hypothesis import strategies as st

from hvd_lm.command_line.flags import parse, parse_with_yaml
from hvd_lm.config import (
    CommunicationConfig,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    TopologyConfig,
    from_dict,
    read_yaml,
    to_dict,
    write_yaml,
)
from hvd_lm.data.prepare import PrepareConfig
from hvd_lm.errors import ConfigError
from hvd_lm.evaluation.perplexity import EvaluateConfig

RULE = "─────"
"""A value that looks like what a terminal draws."""
SECTIONS = (ModelConfig, DataConfig, OptimizerConfig, CommunicationConfig, TopologyConfig)


def flags(*argv: str) -> RunConfig:
    """What ``hvd-lm train argv`` runs with."""
    return parse_with_yaml(RunConfig, "train", argv)


def yaml_and_flags(folder: Path, content: str, *argv: str) -> RunConfig:
    """What ``hvd-lm train --config FILE argv`` runs with, FILE holding `content`."""
    path = folder / "run.yaml"
    path.write_text(content, encoding="utf-8")
    return flags("--config", str(path), *argv)


def check_one_line(error: ConfigError) -> str:
    """The message, if it is one line without what a terminal draws."""
    message = str(error)
    assert message.strip()
    assert len(message.splitlines()) == 1
    assert not re.search(r"[\u2500-\u257f\x1b]", message.replace(repr(RULE), ""))
    return message


def refused_flags(*argv: str) -> str:
    with pytest.raises(ConfigError) as caught:
        flags(*argv)
    return check_one_line(caught.value)


def refused_yaml(folder: Path, content: str, *argv: str) -> str:
    with pytest.raises(ConfigError) as caught:
        yaml_and_flags(folder, content, *argv)
    return check_one_line(caught.value)


# --- refusals --------------------------------------------------------------------------------------------

NAN = float("nan")
REFUSALS: list[tuple[type[Any], dict[str, Any], str]] = [
    (ModelConfig, {"embedding_size": 0}, "--embedding-size"),
    (ModelConfig, {"hidden_size": -1}, "--hidden-size"),
    (ModelConfig, {"layers": 0}, "--layers"),
    (ModelConfig, {"vocabulary_size": 1}, "--vocabulary-size"),
    (ModelConfig, {"dropout": 1.0}, "--dropout"),
    (ModelConfig, {"dropout": -0.1}, "--dropout"),
    (ModelConfig, {"dropout": NAN}, "--dropout"),
    (ModelConfig, {"tie_embedding": True, "embedding_size": 3, "hidden_size": 4}, "--tie-embedding"),
    (DataConfig, {"batch_size": 0}, "--batch-size"),
    (DataConfig, {"sequence_length": 0}, "--sequence-length"),
    (DataConfig, {"validation_share": 1.0}, "--validation-share"),
    (DataConfig, {"validation_share": -0.01}, "--validation-share"),
    (DataConfig, {"validation_share": NAN}, "--validation-share"),
    (OptimizerConfig, {"learning_rate": 0.0}, "--learning-rate"),
    (OptimizerConfig, {"learning_rate": NAN}, "--learning-rate"),
    (OptimizerConfig, {"base_batch_size": 0}, "--base-batch-size"),
    (OptimizerConfig, {"warmup_steps": -1}, "--warmup-steps"),
    (OptimizerConfig, {"clip": 0.0}, "--clip"),
    (OptimizerConfig, {"clip": NAN}, "--clip"),
    (OptimizerConfig, {"final_learning_rate_fraction": 0.0}, "--final-learning-rate-fraction"),
    (OptimizerConfig, {"final_learning_rate_fraction": 1.1}, "--final-learning-rate-fraction"),
    (OptimizerConfig, {"beta1": 1.0}, "--beta1"),
    (OptimizerConfig, {"beta2": -0.1}, "--beta2"),
    (OptimizerConfig, {"momentum": 1.0}, "--momentum"),
    (OptimizerConfig, {"epsilon": 0.0}, "--epsilon"),
    (CommunicationConfig, {"backward_passes_per_step": 0}, "--backward-passes-per-step"),
    (CommunicationConfig, {"loss_scale": 0.0}, "--loss-scale"),
    (CommunicationConfig, {"loss_scale_growth_steps": 0}, "--loss-scale-growth-steps"),
    (CommunicationConfig, {"gradient_predivide_factor": 0.0}, "--gradient-predivide-factor"),
    (CommunicationConfig, {"fusion_threshold_mb": -1}, "--fusion-threshold-mb"),
    (CommunicationConfig, {"backward_tokens": -1}, "--backward-tokens"),
    (CommunicationConfig, {"cycle_time_ms": 0.0}, "--cycle-time-ms"),
    (CommunicationConfig, {"stall_shutdown_seconds": -1}, "--stall-shutdown-seconds"),
    (CommunicationConfig, {"reduction": "adasum", "compression": "fp16"}, "--reduction adasum"),
    (TopologyConfig, {"data_parallel": 0}, "--data-parallel"),
    (TopologyConfig, {"model_parallel": 0}, "--model-parallel"),
    (RunConfig, {"framework": "jax"}, "--framework"),
    (RunConfig, {"steps": 0}, "--steps"),
    (RunConfig, {"epochs": 0}, "--epochs"),
    (RunConfig, {"threads": 0}, "--threads"),
    (RunConfig, {"validation_every": 0}, "--validation-every"),
    (RunConfig, {"checkpoint_every": -1}, "--checkpoint-every"),
    (RunConfig, {"keep_checkpoints": 0}, "--keep-checkpoints"),
    (RunConfig, {"seed": -1}, "--seed"),
]


def refusal_name(case: tuple[type[Any], dict[str, Any], str]) -> str:
    return " ".join(f"{name}={value}" for name, value in case[1].items())


@pytest.mark.parametrize("case", REFUSALS, ids=refusal_name)
def test_impossible_setting_is_refused_by_its_flag(case: tuple[type[Any], dict[str, Any], str]) -> None:
    config_type, values, flag = case
    with pytest.raises(ConfigError) as caught:
        config_type(**values)
    assert flag in check_one_line(caught.value)


@pytest.mark.parametrize("case", REFUSALS, ids=refusal_name)
def test_command_line_refuses_the_same_in_one_line(case: tuple[type[Any], dict[str, Any], str]) -> None:
    _, values, flag = case
    argv: list[str] = []
    for name, value in values.items():
        argv += [f"--{name.replace('_', '-')}"] + ([] if value is True else [str(value)])
    assert flag.split()[0] in refused_flags(*argv)


@pytest.mark.parametrize("name", ["learning_rate", "epsilon"])
def test_infinite_setting_of_the_optimizer_is_refused(name: str) -> None:
    infinite: dict[str, Any] = {name: float("inf")}
    with pytest.raises(ConfigError, match=f"--{name.replace('_', '-')}"):
        OptimizerConfig(**infinite)


@pytest.mark.parametrize("name", ["loss_scale", "gradient_predivide_factor"])
def test_infinite_setting_of_the_communication_is_refused(name: str) -> None:
    infinite: dict[str, Any] = {name: float("inf")}
    with pytest.raises(ConfigError, match=f"--{name.replace('_', '-')}"):
        CommunicationConfig(**infinite)


def test_config_error_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="--layers"):
        ModelConfig(layers=0)


# --- dicts and files -------------------------------------------------------------------------------------

POSITIVE = st.integers(1, 10**6)
NAMES = st.text("abc XYZ_.é0", min_size=1, max_size=8).map(lambda s: Path(s.strip() or "x")).filter(lambda p: str(p) != "None")
FRACTIONS = st.floats(0, 1, exclude_max=True)
RATES = st.floats(1e-12, 1e6)


def optional(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | values


CONFIGS = st.builds(
    RunConfig,
    framework=st.sampled_from(["torch", "tensorflow"]),
    out=NAMES,
    steps=optional(POSITIVE),
    epochs=optional(POSITIVE),
    seed=st.integers(0, 2**63),
    validation_every=optional(POSITIVE),
    keep_checkpoints=POSITIVE,
    model=st.builds(
        ModelConfig,
        vocabulary_size=optional(st.integers(2, 10**6)),
        embedding_size=st.just(7),
        hidden_size=st.just(7),
        dropout=st.floats(0, 0.99),
        tie_embedding=st.booleans(),
    ),
    data=st.builds(
        DataConfig,
        data=st.lists(NAMES, max_size=3).map(tuple),
        validation_data=st.lists(NAMES, max_size=3).map(tuple),
        validation_share=FRACTIONS,
        batch_size=POSITIVE,
    ),
    optimizer=st.builds(
        OptimizerConfig,
        optimizer=st.sampled_from(["adam", "sgd"]),
        learning_rate=RATES,
        decay=st.sampled_from(["constant", "linear", "cosine", "exponential"]),
        clip=optional(RATES),
        epsilon=RATES,
        beta1=FRACTIONS,
    ),
    communication=st.builds(
        CommunicationConfig,
        compression=st.sampled_from(["none", "fp16"]),
        fusion_threshold_mb=optional(st.integers(0, 1000)),
        backward_tokens=st.integers(0, 10**6),
        cycle_time_ms=optional(RATES),
        autotune=st.booleans(),
        timeline_filename=optional(NAMES),
        hierarchical_allreduce=st.booleans(),
    ),
    topology=st.builds(TopologyConfig, data_parallel=optional(POSITIVE), model_parallel=POSITIVE),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("config")


@settings(max_examples=15, deadline=None)
@given(config=CONFIGS)
def test_saved_config_reproduces_the_run(folder: Path, config: RunConfig) -> None:
    write_yaml(config, folder / "config.yaml")
    assert flags("--config", str(folder / "config.yaml")) == config


@settings(max_examples=25, deadline=None)
@given(config=CONFIGS)
def test_to_dict_holds_plain_values_that_survive_yaml(folder: Path, config: RunConfig) -> None:
    plain = to_dict(config)
    assert yaml.safe_load(yaml.safe_dump(plain)) == plain
    write_yaml(config, folder / "plain.yaml")
    flat = {name: value for section in plain.values() if isinstance(section, dict) for name, value in section.items()}
    flat |= {name: value for name, value in plain.items() if not isinstance(value, dict)}
    assert read_yaml(folder / "plain.yaml") == flat
    assert from_dict(ModelConfig, plain["model"]) == config.model
    assert from_dict(OptimizerConfig, plain["optimizer"]) == config.optimizer


def test_strings_serve_as_paths() -> None:
    config = RunConfig(out="runs/a", data=DataConfig(data=["a.txt", Path("b.txt")]))  # type: ignore[arg-type]
    assert (config.out, config.data.data) == (Path("runs/a"), (Path("a.txt"), Path("b.txt")))


def test_from_dict_names_an_unknown_setting() -> None:
    with pytest.raises(ConfigError, match=r"depth.*ModelConfig"):
        from_dict(ModelConfig, {"layers": 2, "depth": 3})


def test_defaults_are_the_reference_recipe() -> None:
    config = flags()
    assert config == RunConfig()
    assert (config.model.embedding_size, config.model.hidden_size, config.model.layers) == (300, 1024, 2)
    assert (config.data.batch_size, config.data.sequence_length) == (8, 32)
    assert (config.optimizer.optimizer, config.optimizer.learning_rate, config.optimizer.clip) == ("adam", 1e-3, 1.0)
    assert config.communication.backward_passes_per_step == 10


# --- YAML ------------------------------------------------------------------------------------------------


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
        ("optimizer: rmsprop", "optimizer must be one of adam, sgd, not 'rmsprop'"),
        ("optimizer: [adam]", "optimizer must be one of adam, sgd, not ['adam']"),
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


# --- flags -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--bogus", "3"], "--bogus"),
        (["--bogus=3"], "--bogus"),
        (["--bog\nus\x1b"], "--bog"),
        (["--layer", "3"], "--layer"),
        (["stray"], "stray"),
        (["--steps", "3", "stray"], "stray"),
        (["--optimizer", "rmsprop"], "'rmsprop'"),
        (["--framework", "jax"], "'jax'"),
        (["--compression", "bf16"], "'bf16'"),
        (["--layers", "two"], "--layers"),
        (["--layers", "1.5"], "--layers"),
        (["--layers", "a\nb"], "--layers"),
        (["--layers", RULE], "--layers"),
        (["--layers"], "--layers"),
        (["--steps", "1.5"], "--steps"),
        (["--dropout", "a"], "--dropout"),
        (["--seed", "1" * 5000], "--seed"),
        (["--autotune", "maybe"], "maybe"),
        (["--no-layers"], "--no-layers"),
        (["--tie-embedding"], "--tie-embedding"),
    ],
    ids=lambda value: " ".join(value)[:30] if isinstance(value, list) else "",
)
def test_bad_flag_is_one_line(argv: list[str], named: str) -> None:
    message = refused_flags(*argv)
    assert named in message
    assert "hvd-lm train --help" in message


def test_missing_and_misspelt_flags() -> None:
    for argv, said in (([], "--checkpoint must be given"), (["--chekpoint", "x"], "did you mean --checkpoint?")):
        with pytest.raises(ConfigError) as caught:
            parse(EvaluateConfig, "evaluate", argv)
        assert said in check_one_line(caught.value)


def test_wrong_value_is_told_apart_from_the_words_behind_it() -> None:
    with pytest.raises(ConfigError) as caught:
        parse(PrepareConfig, "prepare", ["--vocabulary-size", "x", "a.txt", "b.txt"])
    assert "--vocabulary-size must be an integer, not 'x' (" in check_one_line(caught.value)


def test_long_unknown_flag_is_named_whole() -> None:
    flag = "--a-flag-that-nobody-knows-and-that-is-longer-than-any-terminal-is-wide-by-default-so-it-would-wrap"
    assert flag in refused_flags(flag, "3")


def test_stray_word_is_not_taken_for_a_file_of_the_yaml_list(tmp_path: Path) -> None:
    assert "stray" in refused_yaml(tmp_path, "data: [a, b]\n", "stray")


def test_flags_set_every_kind_of_value() -> None:
    argv = "--data a b --clip None --tie-embedding --embedding-size 8 --hidden-size 8 --steps 3 --out x/y --decay cosine"
    config = flags(*argv.split())
    assert config.data.data == (Path("a"), Path("b"))
    assert config.optimizer.clip is None
    assert config.model.tie_embedding is True
    assert (config.steps, config.out, config.optimizer.decay) == (3, Path("x/y"), "cosine")


def test_help_ends_with_success_and_names_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        flags("--help")
    assert not caught.value.code
    printed = capsys.readouterr().out
    assert [flag for flag in flag_names() if flag not in printed] == []
    assert "--config" in printed


# --- horovodrun ------------------------------------------------------------------------------------------


def flag_names(config_type: type[Any] = RunConfig) -> Iterator[str]:
    """Every flag of `config_type`, sections flattened; both forms of a boolean."""
    hints = get_type_hints(config_type)
    for setting in fields(config_type):
        if is_dataclass(hints[setting.name]):
            yield from flag_names(hints[setting.name])
            continue
        yield f"--{setting.name.replace('_', '-')}"
        if hints[setting.name] is bool:
            yield f"--no-{setting.name.replace('_', '-')}"


def horovodrun_takes(monkeypatch: pytest.MonkeyPatch, command: list[str]) -> bool:
    """Whether horovodrun hands `command` on whole: it looks for its own options in it, abbreviated ones too."""
    monkeypatch.setattr(sys, "argv", ["horovodrun", "-np", "2", *command])
    try:
        return bool(parse_horovodrun().command == command)
    except SystemExit:
        return False


def test_horovodrun_refuses_an_ambiguous_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trap that the next test guards against."""
    assert not horovodrun_takes(monkeypatch, ["hvd-lm", "train", "--timeline", "x"])


@pytest.mark.parametrize("flag", ["--config", "--help", *flag_names()])
def test_horovodrun_hands_the_flag_on(monkeypatch: pytest.MonkeyPatch, flag: str) -> None:
    for words in ([flag, "1"], [f"{flag}=1"], [flag.replace("-", "_").replace("__", "--"), "1"]):
        assert horovodrun_takes(monkeypatch, ["hvd-lm", "train", *words])


def test_sections_of_run_config_are_the_known_ones() -> None:
    """Flat names in YAML and flags without prefix need names that are unique over all sections."""
    assert {hint for hint in get_type_hints(RunConfig).values() if is_dataclass(hint)} == set(SECTIONS)
    names = list(flag_names())
    assert len(names) == len(set(names))
