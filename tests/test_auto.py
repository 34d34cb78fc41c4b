"""`--plan auto`: what a run takes of the ways that it may, alike on all ranks, and once."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import launcher
import pools
import pytest
from test_plan import FAST, RUN, SLOW
from test_predict import a_link

from hvd_lm import checkpoint as checkpoints
from hvd_lm.command_line.commands import main
from hvd_lm.communication.auto import of_link, words
from hvd_lm.communication.link import Link
from hvd_lm.communication.measure import Work
from hvd_lm.compression.compressors import PowerSGD
from hvd_lm.config import CommunicationConfig, RunConfig
from hvd_lm.errors import ConfigError
from hvd_lm.settings_file import read_yaml
from hvd_lm.training.loop import train

# --- what is taken ---------------------------------------------------------------------------------------


def tried(link: Link, communication: CommunicationConfig) -> tuple[str, set[str]]:
    """The way that is taken, and all that are tried, on four ranks."""
    found = of_link(link, "torch", replace(Work.of(RUN), communication=communication), RUN.topology, 4)
    assert {its.backward_passes_per_step for its in found.settings} == {communication.backward_passes_per_step}
    return found.pick.way, {its.way for its in found.settings}


@pytest.mark.parametrize("passes", [1, 7])
def test_learning_is_not_changed_unless_that_is_asked_for(passes: int) -> None:
    """Nor are the micro-batches of a step, whatever they are."""
    asked = CommunicationConfig(backward_passes_per_step=passes)
    assert tried(FAST, asked) == ("none", {"none", "fp16"})
    assert tried(SLOW, asked) == ("fp16", {"none", "fp16"})


@pytest.mark.parametrize(
    ("asked", "ways"),
    [
        (CommunicationConfig(compression="fp16"), set()),
        (CommunicationConfig(compression="powersgd"), {"powersgd"}),
        (CommunicationConfig(compression="topk"), {"topk"}),
        (CommunicationConfig(reduce_every=6), {"every-4", "every-6"}),
        (CommunicationConfig(late_gradients=True), {"late", "late-fp16"}),
    ],
)
def test_what_is_asked_for_is_tried_beside_what_is_exact(asked: CommunicationConfig, ways: set[str]) -> None:
    assert tried(FAST, asked) == ("none", {"none", "fp16"} | ways)


def test_powersgd_is_taken_where_it_is_asked_for_and_faster() -> None:
    assert tried(SLOW, CommunicationConfig(backward_passes_per_step=2, compression="powersgd"))[0] == "powersgd"
    assert tried(a_link(1e-3, 1e-7, 1e-3), CommunicationConfig(reduce_every=8))[0] == "every-8"


def test_a_way_is_told_in_flags() -> None:
    assert words(CommunicationConfig(compression="fp16")) == "--compression fp16"
    assert words(CommunicationConfig(reduce_every=3)) == "--compression none --reduce-every 3"
    assert words(CommunicationConfig(late_gradients=True)) == "--compression none --late-gradients"


# --- runs ------------------------------------------------------------------------------------------------

SMALL = [*launcher.SMALL, "--batch-size", "4", "--backward-passes-per-step", "2", "--threads", "1", "--deterministic"]


def trained(framework: str, out: Path, *flags: str) -> tuple[str, list[str]]:
    """What was printed, and the lines of it that speak of a plan."""
    output = pools.hvd_lm(2, "train", "--framework", framework, "--out", out, *SMALL, *flags).output
    return output, [line for line in output.splitlines() if "--plan auto" in line]


@pytest.mark.ranks
def test_a_run_takes_a_way_and_keeps_it(framework: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    output, (line,) = trained(framework, out, "--plan", "auto", "--steps", "4")
    taken = re.match(r"--plan auto takes --compression (none|fp16)\. .* limits: on 2 ranks.* The pick sends ", line)
    assert taken, line
    settings = read_yaml(out / "config.yaml")
    assert (settings["compression"], settings["plan"], settings["link"]) == (taken[1], None, None)
    assert output.count("predicted: ") == 1
    # The weights begin as without a plan, and the steps are the same.
    trained(framework, tmp_path / "same", "--compression", taken[1], "--steps", "4")
    assert launcher.losses(out) == launcher.losses(tmp_path / "same")
    # Its config repeats it, without another measurement.
    output, lines = trained(framework, out, "--config", str(out / "config.yaml"), "--resume", "auto", "--steps", "6")
    assert lines == []
    assert "predicted: " not in output


@pytest.mark.ranks
def test_a_run_that_goes_on_does_not_plan_again(framework: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    begun = ["--compression", "powersgd", "--powersgd-start-steps", "2", "--powersgd-rank", "1"]
    trained(framework, out, *begun, "--steps", "4")
    output, (line,) = trained(framework, out, "--plan", "auto", *begun[2:], "--resume", "auto", "--steps", "6")
    assert line == "--plan auto: the run goes on as it began, with --compression powersgd"
    assert "predicted: " not in output
    assert read_yaml(out / "config.yaml")["compression"] == "powersgd"
    trained(framework, tmp_path / "whole", *begun, "--steps", "6", "--checkpoint-every", "4")
    assert launcher.losses(out) == launcher.losses(tmp_path / "whole")
    assert checkpoints.load(out).progress.settings["communication"]["compression"] == "powersgd"  # type: ignore[index]


@pytest.mark.ranks
def test_what_is_asked_for_is_measured_as_exact(framework: str, tmp_path: Path) -> None:
    """Where it would be late, or kept: what is measured is the same."""
    _, (line,) = trained(framework, tmp_path / "run", "--plan", "auto", "--late-gradients", "--steps", "2")
    assert re.match(r"--plan auto takes --compression (none|fp16)( --late-gradients)?\. ", line)


def test_one_rank_has_nothing_to_choose(framework: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    flags = ["--framework", framework, "--plan", "auto", "--steps", "1", "--out", str(tmp_path / "run")]
    assert main(["train", *SMALL, *flags]) == 0
    assert capfd.readouterr().err.count("--plan auto: one rank has nothing to send, and nothing to choose\n") == 1
    assert read_yaml(tmp_path / "run" / "config.yaml")["plan"] is None


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--plan", "car"], "--plan"),
        (["--elastic"], "--plan auto is for a number of ranks that stays: use it without --elastic"),
        (["--autotune"], "--autotune is not predicted yet"),
    ],
)
def test_what_cannot_be_planned_is_refused(flags: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *SMALL, "--plan", "auto", *flags, "--out", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_a_compressor_is_no_plan(tmp_path: Path) -> None:
    config = RunConfig(out=tmp_path / "run", communication=CommunicationConfig(plan="auto"))
    with pytest.raises(ConfigError, match="train with it, or with --plan auto"):
        train(config, compressor=PowerSGD(2))


def test_another_plan_is_refused() -> None:
    with pytest.raises(ConfigError, match="--plan must be auto, not car"):
        CommunicationConfig(plan="car")  # type: ignore[arg-type]
