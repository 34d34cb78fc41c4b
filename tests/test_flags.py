"""Flags: what is refused and with which words, and that horovodrun hands them on."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from horovod.runner.launch import parse_args as parse_horovodrun
from parsing import RULE, check_one_line, flags, refused_flags, refused_yaml

from hvd_lm.command_line.flags import parse
from hvd_lm.config import (
    CommunicationConfig,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    TopologyConfig,
)
from hvd_lm.data.prepare import PrepareConfig
from hvd_lm.errors import ConfigError
from hvd_lm.evaluation.perplexity import EvaluateConfig
from hvd_lm.generation.text import GenerateConfig
from hvd_lm.report.page import ReportConfig

SECTIONS = (ModelConfig, DataConfig, OptimizerConfig, CommunicationConfig, TopologyConfig)


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


def test_a_flag_for_what_has_none() -> None:
    with pytest.raises(ConfigError) as caught:
        parse(ReportConfig, "report", ["--runs", "one"])
    assert "give what --runs would name without it" in check_one_line(caught.value)


def test_wrong_value_is_told_apart_from_the_words_behind_it() -> None:
    with pytest.raises(ConfigError) as caught:
        parse(PrepareConfig, "prepare", ["--vocabulary-size", "x", "a.txt", "b.txt"])
    assert "--vocabulary-size must be an integer, not 'x' (" in check_one_line(caught.value)


def test_long_unknown_flag_is_named_whole() -> None:
    flag = "--a-flag-that-nobody-knows-and-that-is-longer-than-any-terminal-is-wide-by-default-so-it-would-wrap"
    assert flag in refused_flags(flag, "3")


def test_stray_word_is_not_taken_for_a_file_of_the_yaml_list(tmp_path: Path) -> None:
    assert "stray" in refused_yaml(tmp_path, "data: [a, b]\n", "stray")


@pytest.mark.parametrize("value", ["--he", "--", "-x", "--he said", "- a", "--no", "--length-", "--he=3"])
def test_a_text_may_begin_with_dashes(value: str) -> None:
    for argv in (["--prompt", value], [f"--prompt={value}"]):
        config = parse(GenerateConfig, "generate", ["--checkpoint", "x", *argv, "--length", "5"])
        assert (config.prompt, config.length) == (value, 5)
    assert parse(GenerateConfig, "generate", ["--prompt", "y", "--checkpoint", value]).checkpoint == Path(value)


@pytest.mark.parametrize("flag", ["--length", "--top_k", "--help-me", "--samples=2"])
def test_a_flag_is_no_value_of_the_one_before(flag: str) -> None:
    argv = ["--checkpoint", "x", "--prompt", flag]
    if flag == "--help-me":
        assert parse(GenerateConfig, "generate", argv).prompt == flag
        return
    with pytest.raises(ConfigError, match="--prompt needs a value"):
        parse(GenerateConfig, "generate", argv)


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
