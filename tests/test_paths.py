"""Paths in settings, from flags, YAML and Python: one counts as several, none is empty, ~ is the home folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from parsing import check_one_line, flags, refused_flags, refused_yaml, yaml_and_flags

from hvd_lm.command_line.flags import parse
from hvd_lm.command_line.yaml_defaults import setting_types
from hvd_lm.config import (
    DataConfig,
    RunConfig,
)
from hvd_lm.data.prepare import PrepareConfig
from hvd_lm.errors import ConfigError
from hvd_lm.evaluation.perplexity import EvaluateConfig
from hvd_lm.evaluation.score import ScoreConfig
from hvd_lm.export import ExportConfig
from hvd_lm.generation.text import GenerateConfig
from hvd_lm.report.page import ReportConfig
from hvd_lm.settings_file import write_yaml


def test_strings_serve_as_paths() -> None:
    config = RunConfig(out="runs/a", data=DataConfig(data=["a.txt", Path("b.txt")]))  # type: ignore[arg-type]
    assert (config.out, config.data.data) == (Path("runs/a"), (Path("a.txt"), Path("b.txt")))


ONE_FOR_SEVERAL: list[tuple[type[Any], str, dict[str, Any]]] = [
    (DataConfig, "data", {}),
    (DataConfig, "validation_data", {}),
    (PrepareConfig, "text", {}),
    (PrepareConfig, "validation_data", {"text": "x"}),
    (PrepareConfig, "test_data", {"text": "x"}),
    (EvaluateConfig, "data", {"checkpoint": "x"}),
    (ScoreConfig, "data", {"checkpoint": "x"}),
    (ReportConfig, "runs", {}),
]


@pytest.mark.parametrize(("config_type", "name", "others"), ONE_FOR_SEVERAL, ids=lambda v: getattr(v, "__name__", str(v)))
def test_one_path_counts_as_several(config_type: type[Any], name: str, others: dict[str, Any]) -> None:
    for given in ("a b.txt", Path("a b.txt"), ["a b.txt"], iter(["a b.txt"])):
        assert getattr(config_type(**others, **{name: given}), name) == (Path("a b.txt"),)


def test_every_setting_of_several_paths_is_tried_above() -> None:
    configs = (RunConfig, PrepareConfig, EvaluateConfig, ScoreConfig, GenerateConfig, ExportConfig, ReportConfig)
    several = {name for config in configs for name, hint in setting_types(config).items() if hint == tuple[Path, ...]}
    assert several == {name for _, name, _ in ONE_FOR_SEVERAL}


@pytest.mark.parametrize("given", ["", "a\0b", 3, None, b"x", ["x"]], ids=repr)
def test_what_is_no_path_is_refused(given: Any) -> None:
    """Path("") is the working folder, where a run would move aside what it finds."""
    for make in (lambda: RunConfig(out=given), lambda: EvaluateConfig(given), lambda: PrepareConfig("x", out=given)):
        with pytest.raises(ConfigError, match=r"^--(out|checkpoint) must be a path .*, not ") as caught:
            make()
        check_one_line(caught.value)


@pytest.mark.parametrize("given", [[""], 3, [3], ["a", None]], ids=repr)
def test_what_is_no_list_of_paths_is_refused(given: Any) -> None:
    with pytest.raises(ConfigError, match=r"^--data must be a list of paths, not "):
        DataConfig(data=given)


@pytest.mark.parametrize("name", ["out", "data", "timeline_filename", "resume"])
def test_an_empty_path_is_refused_wherever_it_is_given(tmp_path: Path, name: str) -> None:
    """As ``--out "$UNSET"`` gives it."""
    flag = f"--{name.replace('_', '-')}"
    for argv in ([flag, ""], [f"{flag}="]):
        assert flag in refused_flags(*argv)
    assert name in refused_yaml(tmp_path, f"{name}: ''\n")


def test_an_empty_config_file_is_refused() -> None:
    assert "--config needs a file" in refused_flags("--config", "")
    assert "--config needs a file" in refused_flags("--config=")


@pytest.mark.parametrize("command", [("prepare", PrepareConfig), ("report", ReportConfig)], ids=lambda command: command[0])
def test_an_empty_word_is_no_path(command: tuple[str, type[Any]]) -> None:
    with pytest.raises(ConfigError, match="must be a list of paths, not ''"):
        parse(command[1], command[0], [""])


def test_the_home_folder_in_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    config = yaml_and_flags(tmp_path, "out: ~/run\ndata: [~/a.txt, b~, ~x]\nresume: ~/run\n")
    assert (config.out, config.resume) == (tmp_path / "run", str(tmp_path / "run"))
    assert config.data.data == (tmp_path / "a.txt", Path("b~"), Path("~x"))
    assert flags("--out=~/run").out == tmp_path / "run"


def test_no_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(_: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", unknown)
    assert "--out ~/run: nothing says where the home folder is: set HOME" in refused_flags("--out=~/run")


def test_a_saved_configuration_goes_on_with_its_run_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_yaml(RunConfig(out=Path("runs/a")), tmp_path / "config.yaml")
    monkeypatch.chdir("/")
    assert flags("--config", str(tmp_path / "config.yaml"), "--resume", "auto").out == tmp_path / "runs" / "a"
