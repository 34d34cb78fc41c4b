"""Plans: what is picked on slow and fast links and why, its band, what is written of it, and what is refused."""

from __future__ import annotations

import json
import math
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import launcher
import pytest
from conftest import INSTALLED
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.image import imread
from test_predict import MODEL, a_link

from hvd_lm.command_line.commands import main
from hvd_lm.command_line.flags import parse_with_yaml
from hvd_lm.communication import memory
from hvd_lm.communication.band import bounds
from hvd_lm.communication.link import Link, Point, write_link
from hvd_lm.communication.measure import Work
from hvd_lm.communication.memory import memory_of_rank
from hvd_lm.communication.plan import CLOSE, PlanConfig, parse_ranks, plan
from hvd_lm.communication.plan_files import write_plan
from hvd_lm.communication.plan_picture import PARTS, draw
from hvd_lm.communication.plan_words import EXACT, SEEN
from hvd_lm.communication.planned import COMPRESSIONS, Plan
from hvd_lm.communication.predict import predict
from hvd_lm.communication.ring import course
from hvd_lm.config import CommunicationConfig, DataConfig, ModelConfig, OptimizerConfig, RunConfig, passes_for
from hvd_lm.errors import ConfigError
from hvd_lm.model.stages import parameters

RUN = RunConfig(model=MODEL, data=DataConfig(batch_size=4, sequence_length=16))
TARGET = 64 * 16
"""Sixteen micro-batches."""
RANKS = (1, 2, 4, 8, 16)
FAST = a_link(alpha=1e-7, beta=1e-12, negotiation=1e-6)
SLOW = a_link(alpha=1e-6, beta=3e-7, negotiation=1e-5)


def of(link: Link, run: RunConfig = RUN, ranks: tuple[int, ...] = RANKS, target: int = TARGET, **more: Any) -> Plan:
    return plan(link, run.framework, Work.of(run), run.topology, ranks, target, **more)


def off(link: Link, small: float, large: float) -> Link:
    """`link` with points that took so many times what the fits say."""
    collectives = []
    for its in link.collectives:
        points = []
        for power in range(8):
            size = 1024 * 4**power
            fitted = link.negotiation_seconds + course(its.name, link.ranks).seconds(size, its.alpha, its.beta)  # type: ignore[arg-type]
            seconds = fitted * (small if size <= 4096 else large)
            points.append(Point(size, 1, seconds, seconds, seconds, 3))
        collectives.append(replace(its, points=tuple(points)))
    return replace(link, collectives=tuple(collectives))


# --- what is tried ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "ranks"),
    [
        ("2..512", (2, 4, 8, 16, 32, 64, 128, 256, 512)),
        ("3..20", (3, 4, 8, 16, 20)),
        ("1..1", (1,)),
        ("8,2,3,8", (2, 3, 8)),
        ("7", (7,)),
    ],
)
def test_ranks_are_a_range_or_a_list(text: str, ranks: tuple[int, ...]) -> None:
    assert parse_ranks(text) == ranks


@pytest.mark.parametrize(
    "text", ["", "0..4", "2..", "..8", "2...8", "2-8", "2,,3", "0", "-1", "2,0", "a", "1e3", "2..9999999", "٢"]
)
def test_other_ranks_are_refused(text: str) -> None:
    with pytest.raises(
        ConfigError, match=r"--ranks must be FIRST..LAST or a list such as 2,3,8, of numbers from 1 to 1000000, not"
    ):
        parse_ranks(text)


def test_a_range_that_ends_before_it_begins_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--ranks 8..2 ends before it begins: say 2..8"):
        parse_ranks("8..2")


@given(st.integers(64, 10**6), st.integers(1, 2000))
def test_accumulation_brings_the_batch_nearest_to_the_target(target: int, ranks: int) -> None:
    count = passes_for(target, ranks, RUN.data)
    distances = [abs(target - ranks * other * 64) for other in (count - 1, count, count + 1) if other >= 1]
    assert count >= 1
    assert abs(target - ranks * count * 64) == min(distances)


def test_all_ranks_and_compressions_are_tried_once() -> None:
    tried = [(its.ranks, its.compression) for its in of(FAST, ranks=(*RANKS, 2)).settings]
    assert sorted(tried) == sorted([(1, "none"), *((ranks, name) for ranks in RANKS[1:] for name in COMPRESSIONS)])


def test_a_setting_is_what_predict_says_of_it() -> None:
    its = next(its for its in of(SLOW).settings if (its.ranks, its.compression) == (8, "fp16"))
    work = Work(MODEL, RUN.data, RUN.optimizer, CommunicationConfig(backward_passes_per_step=2, compression="fp16"))
    found = predict(SLOW, "torch", work, RUN.topology, 8)
    assert (its.step_seconds, its.sent_bytes, its.exposed_seconds) == (found.step_seconds, found.sent_bytes, found.exposed_seconds)
    assert (its.backward_passes_per_step, its.global_batch, its.is_extrapolated) == (2, TARGET, True)


# --- what is picked --------------------------------------------------------------------------------------


def test_a_fast_link_is_used_by_all_ranks_with_exact_gradients() -> None:
    found = of(FAST)
    assert (found.pick.ranks, found.pick.compression, found.pick.backward_passes_per_step) == (16, "none", 1)
    assert found.limit == "compute"
    assert "Compute limits: on 16 ranks" in found.explanation[0]
    assert "sends gradients as they are" in found.explanation[1]
    assert "costs nothing" in found.explanation[2]


def test_a_slow_link_is_given_powersgd() -> None:
    found = of(SLOW)
    assert found.pick.compression == "powersgd"
    assert found.limit == "bandwidth"
    assert "The bandwidth of the link limits" in found.explanation[0]
    assert "two matrices of 4 columns" in found.explanation[1]
    assert "another algorithm" in found.explanation[2]
    assert "100 exact steps" in found.explanation[2]


def test_a_link_of_much_latency_is_used_by_few_ranks_that_accumulate() -> None:
    """2(n - 1) alpha an operation: more ranks cost more than they compute."""
    found = of(a_link(alpha=5e-3, beta=1e-12, negotiation=1e-6))
    assert found.limit == "latency"
    assert "latency of the link limits" in found.explanation[0]
    assert found.pick.ranks < 16
    assert found.pick.backward_passes_per_step > 1
    alone = of(a_link(alpha=10, beta=1e-12, negotiation=1e-6))
    assert (alone.pick.ranks, alone.pick.compression, alone.limit) == (1, "none", "latency")
    assert "stays on one rank" in alone.explanation[1]


def test_slower_links_change_no_less_in_learning() -> None:
    """From 1 TB/s down to 100 kB/s, where two ranks or more there must be."""
    picks = [of(a_link(1e-6, 10 ** (step / 2), 1e-5), ranks=RANKS[1:]).pick for step in range(-24, -9)]
    changes = [COMPRESSIONS.index(pick.compression) for pick in picks]
    assert changes == sorted(changes)
    assert set(changes) == {0, 1, 2}


@pytest.mark.parametrize("link", [FAST, SLOW, a_link(), a_link(beta=1e-7)])
def test_the_pick_is_by_the_rule(link: Link) -> None:
    found = of(link)
    near = [its for its in found.settings if its.is_near_target]
    best = max(its.tokens_per_second for its in near)
    as_fast = [its for its in near if its.tokens_per_second >= (1 - CLOSE) * best]
    changes_least = min(COMPRESSIONS.index(its.compression) for its in as_fast)
    assert found.pick == found.settings[0]
    assert found.pick in as_fast
    assert COMPRESSIONS.index(found.pick.compression) == changes_least
    assert found.pick.ranks == min(its.ranks for its in as_fast if COMPRESSIONS.index(its.compression) == changes_least)


def test_the_target_is_kept() -> None:
    """16 micro-batches: 32 ranks are twice as many, 64 no more picked, however fast they are."""
    found = of(FAST, ranks=(8, 16, 32, 64))
    assert found.pick.ranks == 32
    assert found.limit == "batch"
    assert "over twice the target" in found.explanation[0]
    assert "2,048 tokens where 1,024 were asked for" in found.explanation[2]
    far = [its for its in found.settings if not its.is_near_target]
    assert {its.ranks for its in far} == {64}
    assert found.settings[-len(far) :] == tuple(far)


def test_no_setting_near_the_target_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"the nearest are 4096 tokens, on 64 rank\(s\); ask for fewer ranks, another target or"):
        of(FAST, ranks=(64, 128))


def test_what_does_not_go_with_the_run_is_left_out() -> None:
    predivided = replace(RUN, communication=CommunicationConfig(gradient_predivide_factor=2.0))
    found = of(SLOW, predivided)
    assert {its.compression for its in found.settings} == {"none", "fp16"}
    (reason,) = found.left_out
    assert "powersgd: --gradient-predivide-factor makes room" in reason


def test_all_else_is_as_in_the_run() -> None:
    based = replace(RUN, communication=CommunicationConfig(backward_tokens=64, powersgd_rank=1, powersgd_start_steps=7))
    found = of(SLOW, based)
    assert "two matrices of 1 columns" in found.explanation[1]
    assert "7 exact steps" in found.explanation[2]
    sent = {its.sent_bytes for its in found.settings if its.compression == "powersgd"}
    assert max(sent) < min(its.sent_bytes for its in of(SLOW).settings if its.compression == "powersgd")


# --- ways that only a run can ask for --------------------------------------------------------------------

ASKED = {
    "topk": CommunicationConfig(compression="topk", topk_share=0.01),
    "every-8": CommunicationConfig(reduce_every=8, reduce_start_steps=5),
    "late": CommunicationConfig(late_gradients=True),
}


@pytest.mark.parametrize("way", ASKED)
def test_what_the_run_asks_for_is_tried_beside_what_is_exact(way: str) -> None:
    asked = replace(RUN, communication=ASKED[way])
    found = of(SLOW, asked, ranks=(2, 4))
    tried = {its.way for its in found.settings}
    besides = {"late": ["late-fp16"], "every-8": ["every-4"]}
    assert tried == {*COMPRESSIONS, way, *besides.get(way, [])}
    without = {(its.ranks, its.way): its for its in of(SLOW, ranks=(2, 4)).settings}
    for its in found.settings:
        if its.way in COMPRESSIONS:
            assert its == without[its.ranks, its.way]
    (one,) = (its for its in found.settings if (its.ranks, its.way) == (4, way))
    work = replace(Work.of(asked), communication=replace(ASKED[way], backward_passes_per_step=4))
    assert one.step_seconds == predict(SLOW, "torch", work, RUN.topology, 4).step_seconds


@pytest.mark.parametrize("way", ASKED)
def test_it_is_picked_only_where_it_is_faster(way: str) -> None:
    asked = replace(RUN, communication=ASKED[way])
    assert of(FAST, asked, ranks=(4,)).pick.way == "none"
    assert [of(FAST, asked, ranks=(4,)).explanation] == [of(FAST, ranks=(4,)).explanation]
    assert all(its.way in COMPRESSIONS for its in of(SLOW).settings), "nobody asked for it"


def test_weights_are_averaged_as_often_as_is_as_fast() -> None:
    """Up to every 1000 steps were asked for; fewer change learning less."""
    asked = replace(RUN, communication=CommunicationConfig(reduce_every=1000))
    found = of(a_link(alpha=1e-3, beta=1e-7, negotiation=1e-3), asked, ranks=(4,))
    assert {its.reduce_every for its in found.settings} == {1, 4, 16, 64, 256, 1000}
    fastest = max(its.tokens_per_second for its in found.settings)
    as_fast = [its.reduce_every for its in found.settings if its.tokens_per_second >= 0.97 * fastest]
    assert found.pick.reduce_every == min(as_fast) < 1000


@pytest.mark.parametrize(
    ("way", "link", "does", "costs"),
    [
        (
            "topk",
            a_link(alpha=2e-2, beta=1e-7, negotiation=1e-3),
            "sends 1.00% of a matrix's values, ",
            "share 0.001, it ended at a perplexity of 116.6",
        ),
        (
            "every-8",
            a_link(alpha=1e-3, beta=1e-7, negotiation=1e-3),
            "averages weights every 8 steps, in the mean ",
            "whose curve depends on ranks and learning rate (on the Penn Treebank, every 8, it ended at",
        ),
        ("late", SLOW, "as they are, one step late, ", "are one step old"),
    ],
)
def test_its_sentences_say_what_it_is(way: str, link: Link, does: str, costs: str, tmp_path: Path) -> None:
    found = of(link, replace(RUN, communication=ASKED[way]), ranks=(2, 4))
    assert found.pick.way == way
    assert does in found.explanation[1]
    assert costs in found.explanation[2]
    assert "with gradients as they are" in found.explanation[0]
    labels = [text.get_text() for text in draw(found).legends[0].get_texts()]
    assert {*COMPRESSIONS, way} <= set(labels)
    write_plan(found, replace(RUN, communication=ASKED[way]), link, tmp_path / "link.json", tmp_path / "out")
    written = parse_with_yaml(RunConfig, "train", ["--config", str(tmp_path / "out" / "config.yaml")]).communication
    assert replace(written, link=None, backward_passes_per_step=10) == ASKED[way]


def test_curves_that_are_told_are_those_of_the_docs() -> None:
    page = (Path(__file__).parent.parent / "docs" / "communication.md").read_text(encoding="utf-8")
    rows = {
        line.split("|")[1]: line.split("|")[2].split(",")[-1].strip() for line in page.splitlines() if ", 1" in line and "|" in line
    }
    ended = {name: float(last) for name, last in rows.items() if last.replace(".", "").isdigit()}
    for way, (_, perplexity) in {**SEEN, "none": ("", EXACT)}.items():
        name = {"every-8": "--reduce-every 8", "late": "--late-gradients", "powersgd": "powersgd`, rank 4"}.get(way, way)
        assert perplexity in [value for row, value in ended.items() if name in row], way


def test_an_exact_pick_is_written_without_them(tmp_path: Path) -> None:
    asked = replace(RUN, communication=ASKED["every-8"])
    write_plan(of(FAST, asked), asked, FAST, tmp_path / "link.json", tmp_path / "out")
    written = parse_with_yaml(RunConfig, "train", ["--config", str(tmp_path / "out" / "config.yaml")]).communication
    assert (written.compression, written.reduce_every, written.reduce_start_steps) == ("none", 1, 0)


# --- bands -----------------------------------------------------------------------------------------------


def test_points_on_the_fits_are_a_band_of_no_width() -> None:
    for its in of(off(a_link(), 1.0, 1.0)).settings:
        assert its.step_seconds_low == pytest.approx(its.step_seconds)
        assert its.step_seconds_high == pytest.approx(its.step_seconds)


def test_a_band_is_as_wide_as_the_points_are_off() -> None:
    """Small operations took twice as long as fitted, large ones half: upper alpha and negotiation, lower beta."""
    link = off(a_link(alpha=1e-4, beta=1e-8, negotiation=1e-3), 2.0, 0.5)
    low, high = bounds(link)
    assert high.negotiation_seconds == pytest.approx(2e-3)
    assert low.negotiation_seconds == pytest.approx(1e-3)
    for its, lower, upper in zip(link.collectives, low.collectives, high.collectives, strict=True):
        assert (upper.alpha, upper.beta) == (pytest.approx(2 * its.alpha), pytest.approx(its.beta))
        assert (lower.alpha, lower.beta) == (pytest.approx(its.alpha), pytest.approx(its.beta / 2))


@given(st.floats(0.2, 5), st.floats(0.2, 5), st.floats(1e-9, 1e-3), st.floats(1e-12, 1e-5), st.floats(0, 1e-2))
def test_a_band_contains_its_point(small: float, large: float, alpha: float, beta: float, negotiation: float) -> None:
    for its in of(off(a_link(alpha, beta, negotiation), small, large), ranks=(2, 8)).settings:
        assert its.step_seconds_low <= its.step_seconds <= its.step_seconds_high
        assert 0 < its.scaling_efficiency_low <= its.scaling_efficiency <= its.scaling_efficiency_high <= 1


def test_what_was_measured_and_what_is_extrapolated_is_told() -> None:
    assert {its.ranks for its in of(FAST).settings if not its.is_extrapolated} == {1, 4}


# --- memory ----------------------------------------------------------------------------------------------


def test_memory_is_that_of_the_hand() -> None:
    """Adam: weights, gradients, two moments; of two layers 32 wide the gates, and h and c of 17 of each 16 steps; the embedding's
    rows; of the output inputs, their gradients and the logits."""
    values = sum(math.prod(one.shape) for one in parameters(MODEL).values())
    tokens, sequences = 2 * 64, 2 * 4
    activations = 2 * (4 * tokens * 32 + 2 * (tokens + sequences) * 32) + tokens * 24 + 2 * tokens * 32 + tokens * 1000
    work = Work(MODEL, RUN.data, OptimizerConfig(), CommunicationConfig(backward_passes_per_step=2))
    assert memory_of_rank(work, 4, is_cpu=True) == 4 * (4 * values + activations)
    sgd = replace(work, optimizer=OptimizerConfig(optimizer="sgd"))
    assert memory_of_rank(sgd, 4, is_cpu=True) == 4 * (2 * values + activations)
    powersgd = replace(work, communication=replace(work.communication, compression="powersgd", powersgd_rank=2))
    matrices = [one.shape for one in parameters(MODEL).values() if len(one.shape) == 2]
    kept = sum(math.prod(shape) + 2 * shape[1] for shape in matrices)
    assert memory_of_rank(powersgd, 4, is_cpu=True) == 4 * (4 * values + activations + kept)
    assert memory_of_rank(powersgd, 1, is_cpu=True) == memory_of_rank(work, 1, is_cpu=True)
    topk = replace(work, communication=replace(work.communication, compression="topk", topk_momentum=0.5))
    of_matrices = sum(map(math.prod, matrices))
    assert memory_of_rank(topk, 4, is_cpu=True) == 4 * (4 * values + activations + 2 * of_matrices)
    late = replace(work, communication=replace(work.communication, late_gradients=True))
    assert memory_of_rank(late, 4, is_cpu=True) == 4 * (5 * values + activations)


@pytest.mark.parametrize(
    "model",
    [
        ModelConfig(vocabulary_size=5000, embedding_size=8, hidden_size=16, softmax="sampled", sampled_words=50),
        ModelConfig(vocabulary_size=5000, embedding_size=8, hidden_size=16, softmax="adaptive", adaptive_cutoffs=(50, 200)),
    ],
    ids=["sampled", "adaptive"],
)
def test_fewer_words_take_less_memory(model: ModelConfig) -> None:
    full = replace(model, softmax="full", adaptive_cutoffs=())
    work = Work(model, RUN.data, RUN.optimizer, RUN.communication)
    assert memory_of_rank(work, 2, is_cpu=True) < memory_of_rank(replace(work, model=full), 2, is_cpu=True)


# --- the command -----------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A link, and the run that its compute is of."""
    write_link(off(SLOW, 1.1, 1.2), tmp_path / "link.json")
    (tmp_path / "run.yaml").write_text(
        "vocabulary_size: 1000\nembedding_size: 24\nhidden_size: 32\nbatch_size: 4\nsequence_length: 16\nthreads: 1\nsteps: 3\n"
    )
    return tmp_path / "link.json", tmp_path / "run.yaml"


def command(files: tuple[Path, Path], *flags: str, ranks: str = "2..8", target: str = "1024") -> int:
    link, run = map(str, files)
    return main(["plan", "--link", link, "--config", run, "--ranks", ranks, "--target-batch", target, *flags])


def test_the_command_prints_a_table_and_three_sentences(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert command(files, ranks="2..32") == 0
    lines = capsys.readouterr().out.splitlines()
    expected = of(off(SLOW, 1.1, 1.2), ranks=parse_ranks("2..32"))
    rows = lines[1 : 1 + len(expected.settings)]
    assert rows[0].startswith(">")
    assert [row.split()[-11 if its.ranks > 1 else -9] for row, its in zip(rows, expected.settings, strict=True)] == [
        its.compression for its in expected.settings
    ]
    assert [row[1] == "~" for row in rows] == [its.is_extrapolated for its in expected.settings]
    pick = expected.pick
    assert f"{pick.step_seconds_low * 1e3:,.1f} to {pick.step_seconds_high * 1e3:,.1f}" in rows[0]
    assert tuple(lines[-3:]) == expected.explanation


def test_the_json_has_all_of_it(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert command(files, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads(json.dumps(of(off(SLOW, 1.1, 1.2), ranks=(2, 4, 8)).to_dict()))
    assert found["pick"] == found["settings"][0]
    assert found["limit"] == "bandwidth"
    assert len(found["explanation"]) == 3
    assert {"step_seconds", "step_seconds_low", "step_seconds_high", "memory_bytes", "global_batch"} <= found["pick"].keys()


def test_what_is_written_can_be_loaded_and_is_the_pick(files: tuple[Path, Path], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").mkdir()
    files[1].write_text(files[1].read_text() + "data: [text]\n")
    assert command(files, "--out", str(tmp_path / "out"), ranks="2..8") == 0
    written = parse_with_yaml(RunConfig, "train", ["--config", str(tmp_path / "out" / "config.yaml")])
    pick = of(off(SLOW, 1.1, 1.2), ranks=(2, 4, 8)).pick
    communication = written.communication
    assert (communication.compression, communication.backward_passes_per_step) == (pick.compression, pick.backward_passes_per_step)
    assert communication.link == files[0]
    assert written.model == MODEL
    assert written.data.data == (tmp_path / "text",)
    job = tmp_path / "out" / "job.sh"
    assert os.access(job, os.X_OK)
    assert f"horovodrun -np {pick.ranks} " in job.read_text()
    assert imread(tmp_path / "out" / "plan.png").ndim == 3
    # Again, over the first.
    assert command(files, "--out", str(tmp_path / "out"), ranks="1") == 0
    assert "horovodrun" not in job.read_text()


def test_the_job_file_takes_hosts_as_words(files: tuple[Path, Path], tmp_path: Path) -> None:
    assert command(files, "--out", str(tmp_path / "out"), ranks="2") == 0
    (tmp_path / "horovodrun").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "horovodrun").chmod(0o755)
    job, path = tmp_path / "out" / "job.sh", f"{tmp_path}:/usr/bin:/bin"
    words = launcher.run("bash", job, "--steps", "2", PATH=path, HOSTS="one:1,two:1").expect_success().output.splitlines()
    assert words[:5] == ["-np", "2", "-H", "one:1,two:1", "--gloo"]
    assert words[-2:] == ["--steps", "2"]
    assert launcher.run("bash", job, PATH=path).expect_success().output.splitlines()[2:4] == ["--gloo", "hvd-lm"]
    if shutil.which("shellcheck", path=launcher.with_scripts()["PATH"]):
        launcher.run("shellcheck", job).expect_success()
    ended = launcher.run("bash", job, PATH=path, HOSTS=f"a:1;touch {tmp_path}/run")
    assert ended.code == 2
    assert "HOSTS must be" in ended.output


@pytest.mark.ranks
@pytest.mark.skipif("torch" not in INSTALLED, reason="the link is of torch")
def test_what_is_written_trains_on_two_ranks(files: tuple[Path, Path], tmp_path: Path) -> None:
    files[1].write_text(files[1].read_text() + "powersgd_start_steps: 1\n")
    assert command(files, "--out", str(tmp_path / "out"), ranks="2") == 0
    launcher.run("bash", tmp_path / "out" / "job.sh").expect_success()
    rows = [json.loads(line) for line in (tmp_path / "out" / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["tokens"] for row in rows if "loss" in row] == [1024, 2048, 3072]


# --- what is refused -------------------------------------------------------------------------------------


def refused(capsys: pytest.CaptureFixture[str], files: tuple[Path, Path], *flags: str, **words: str) -> str:
    assert command(files, *flags, **words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_bad_flags_are_refused(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "--ranks must be FIRST..LAST" in refused(capsys, files, ranks="few")
    assert "--target-batch 63 is below one micro-batch of 4 x 16 = 64 tokens" in refused(capsys, files, target="63")
    assert "--target-batch must be at least 1 token, not 0" in refused(capsys, files, target="0")
    assert "no --ranks keep a step within twice" in refused(capsys, files, ranks="64", target="64")
    (tmp_path / "config.yaml").touch()
    assert "holds a config.yaml that is no plan's: name another folder" in refused(capsys, files, "--out", str(tmp_path))
    assert f"cannot write --out {files[0]}" in refused(capsys, files, "--out", str(files[0]))
    with pytest.raises(ConfigError, match="ranks must be numbers of at least 1"):
        of(SLOW, ranks=())
    with pytest.raises(ConfigError, match="--target-batch"):
        PlanConfig(files[0], files[1], "2", 0)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("framework: tensorflow", "measured with torch, and the run is in tensorflow"),
        ("layers: 3", "timed with layers 2, and the run has 3"),
        ("elastic: true", "a plan is for a number of ranks that stays: use it without --elastic"),
        ("reduction: adasum", "--reduction adasum is not predicted yet"),
    ],
)
def test_a_run_that_does_not_fit_is_refused(
    files: tuple[Path, Path], capsys: pytest.CaptureFixture[str], settings: str, said: str
) -> None:
    files[1].write_text(files[1].read_text() + settings + "\n")
    assert said in refused(capsys, files)


def test_a_link_without_compute_is_refused(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    write_link(replace(SLOW, compute=None), files[0])
    assert "knows no model's compute: measure again, with --config" in refused(capsys, files)


def test_too_little_memory_and_an_unseen_limit_are_told(
    files: tuple[Path, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_link(a_link(beta=0), files[0])
    monkeypatch.setattr(memory.os, "sysconf", lambda _: 10)
    assert command(files) == 0
    said = capsys.readouterr().err
    assert "GiB at least, and this machine has 0.0: take larger ones" in said
    assert "no limit of the bandwidth shows in the link" in said


# --- the picture -----------------------------------------------------------------------------------------


def test_the_picture_has_axes_with_units_and_tells_curves_apart_without_colour() -> None:
    found = of(off(SLOW, 1.5, 1.5), ranks=(2, 8, 32, 64))
    figure = draw(found)
    of_time, of_efficiency, of_parts = figure.axes
    assert of_time.get_ylabel() == "time of an optimizer step, seconds"
    assert of_efficiency.get_ylabel() == "scaling efficiency, per cent"
    assert {axes.get_xlabel() for axes in figure.axes} == {"ranks"}
    (legend,) = figure.legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels[:3] == list(COMPRESSIONS)
    assert labels[3:] == ["band: as far as the fits are off", "the pick", "global batch more than twice off"]
    curves = legend.get_lines()[:3]
    assert len({line.get_marker() for line in curves}) == len({line.get_linestyle() for line in curves}) == 3
    assert len(of_time.collections) == len(of_efficiency.collections) == 3
    assert of_parts.get_ylabel() == f"share of a step of {found.pick.way}, per cent"


def test_the_bars_are_what_a_step_is_made_of() -> None:
    found = of(off(SLOW, 1.5, 1.5), ranks=(2, 8, 32))
    bars = draw(found).axes[2].containers
    assert [one.get_label() for one in bars] == list(PARTS)
    assert len({one.patches[0].get_hatch() for one in bars}) == len(bars)
    its = sorted((one for one in found.settings if one.way == found.pick.way), key=lambda one: one.ranks)
    for place, one in enumerate(its):
        heights = [bar.patches[place].get_height() for bar in bars]
        assert sum(heights) == pytest.approx(100)
        assert heights[-1] == pytest.approx(100 * (one.exposed_seconds + one.averaging_seconds) / one.step_seconds)


def test_the_way_of_the_pick_is_drawn_on_other_links(files: tuple[Path, Path], tmp_path: Path) -> None:
    write_link(FAST, tmp_path / "fast.json")
    out = tmp_path / "planned"
    assert command(files, "--other-links", str(tmp_path / "fast.json"), "--out", str(out)) == 0
    assert (out / "plan.png").read_bytes().startswith(b"\x89PNG")
    found = of(SLOW, ranks=(2, 4, 8), other_links={"fast": FAST})
    assert {one.way for one in found.other_links["fast"]} == {found.pick.way}
    assert [one.ranks for one in found.other_links["fast"]] == [2, 4, 8]
    curves = draw(found).axes[3].get_lines()
    assert [curve.get_label() for curve in curves] == ["--link", "fast"]
    assert all(fast >= slow for slow, fast in zip(*(curve.get_ydata() for curve in curves), strict=True))


def test_another_link_that_cannot_be_read_is_refused(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert command(files, "--other-links", "nowhere.json") == 2
    assert "cannot read" in capsys.readouterr().err
