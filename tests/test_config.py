"""Settings: what is refused and with which words, and what comes back from dicts and files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from parsing import check_one_line, flags, refused_flags

from hvd_lm.config import (
    CommunicationConfig,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    TopologyConfig,
    with_passes,
)
from hvd_lm.errors import ConfigError
from hvd_lm.plain_values import from_dict, to_dict
from hvd_lm.settings_file import read_yaml, write_yaml

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
    (ModelConfig, {"input_dropout": 1.0}, "--input-dropout must be in [0, 0.99], not 1.0"),
    (ModelConfig, {"output_dropout": -0.1}, "--output-dropout"),
    (ModelConfig, {"embedding_dropout": NAN}, "--embedding-dropout"),
    (ModelConfig, {"weight_dropout": 1.0}, "--weight-dropout"),
    (ModelConfig, {"weight_normalization": True}, "--weight-normalization needs --cell mlstm"),
    (ModelConfig, {"weight_normalization": True, "cell": "mlstm", "weight_dropout": 0.1}, "and no --weight-dropout"),
    (ModelConfig, {"activation_penalty": -1.0}, "--activation-penalty must be a number and at least 0, not -1.0"),
    (ModelConfig, {"temporal_penalty": NAN}, "--temporal-penalty"),
    (ModelConfig, {"temporal_penalty": float("inf")}, "--temporal-penalty"),
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
    (CommunicationConfig, {"reduction": "adasum", "compression": "powersgd"}, "--reduction adasum"),
    (CommunicationConfig, {"powersgd_rank": 0}, "--powersgd-rank"),
    (CommunicationConfig, {"powersgd_start_steps": -1}, "--powersgd-start-steps"),
    (CommunicationConfig, {"compression": "powersgd", "gradient_predivide_factor": 2.0}, "--gradient-predivide-factor"),
    (CommunicationConfig, {"topk_share": 0.0}, "--topk-share"),
    (CommunicationConfig, {"topk_momentum": 1.0}, "--topk-momentum"),
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
        optimizer=st.sampled_from(["adam", "adamw", "sgd", "asgd", "adagrad"]),
        learning_rate=RATES,
        decay=st.sampled_from(["constant", "linear", "cosine", "exponential"]),
        clip=optional(RATES),
        epsilon=RATES,
        beta1=FRACTIONS,
    ),
    communication=st.builds(
        CommunicationConfig,
        compression=st.sampled_from(["none", "fp16"]),
        powersgd_rank=POSITIVE,
        powersgd_start_steps=POSITIVE,
        topk_share=st.floats(1e-6, 1),
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
    assert flags("--config", str(folder / "config.yaml")) == replace(config, out=config.out.absolute())


@settings(max_examples=25, deadline=None)
@given(config=CONFIGS)
def test_to_dict_holds_plain_values_that_survive_yaml(folder: Path, config: RunConfig) -> None:
    plain = to_dict(config)
    assert yaml.safe_load(yaml.safe_dump(plain)) == plain
    write_yaml(config, folder / "plain.yaml")
    flat = {name: value for section in plain.values() if isinstance(section, dict) for name, value in section.items()}
    flat |= {name: value for name, value in plain.items() if not isinstance(value, dict)} | {"out": str(config.out.absolute())}
    assert read_yaml(folder / "plain.yaml") == flat
    assert from_dict(ModelConfig, plain["model"]) == config.model
    assert from_dict(OptimizerConfig, plain["optimizer"]) == config.optimizer


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


def test_a_target_batch_decides_the_passes() -> None:
    config = flags("--target-batch", "5120", "--batch-size", "16", "--sequence-length", "32", "--backward-passes-per-step", "3")
    assert [with_passes(config, readers).communication.backward_passes_per_step for readers in (1, 2, 3, 100)] == [10, 5, 3, 1]
    assert with_passes(RunConfig(), 3) == RunConfig()
    with pytest.raises(ConfigError, match="--target-batch 511 is below one micro-batch of 16 x 32 = 512 tokens"):
        flags("--target-batch", "511", "--batch-size", "16", "--sequence-length", "32")
