"""Whole jobs, as users launch them: what they write, over Gloo and MPI, and how they end when something is wrong."""

from __future__ import annotations

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from pathlib import Path

import launcher
import numpy as np
import pools
import psutil
import pytest
import yaml
from conftest import INSTALLED, hide

JOBS = Path(__file__).parent.parent / "jobs"
TINY = [*launcher.SMALL, "--backward-passes-per-step", "2", "--batch-size", "4"]
SECONDS_TO_END = 60

pytestmark = pytest.mark.ranks


@pytest.fixture(scope="session")  # tests of one framework come after those of the other
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 30 steps on one rank, in the first framework that is installed."""
    out = tmp_path_factory.mktemp("trained")
    pools.hvd_lm(1, "train", "--framework", INSTALLED[0], "--out", out, *TINY, "--steps", "30", "--learning-rate", "0.01")
    return out


# --- what a job writes -----------------------------------------------------------------------------------


# The other pairs: test_job_files_run.
@pytest.mark.parametrize(("framework", "controller"), zip(cycle(INSTALLED), ("gloo", "mpi"), strict=False))
def test_train_writes_a_run(framework: str, controller: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    ended = launcher.hvd_lm(
        2, "train", "--framework", framework, "--out", out, *TINY, "--steps", "12", "--learning-rate", "0.01",
        "--validation-every", "6", controller=controller,
    ).expect_success()  # fmt: skip
    rows = launcher.metrics(out)
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert {"loss", "tokens", "tokens_per_second", "learning_rate", "gradient_norm", "seconds"} <= set(rows[0])
    assert [row["tokens"] for row in rows] == [2 * 2 * 4 * 16 * step for step in range(1, 13)]
    assert [row["step"] for row in rows if "perplexity" in row] == [6, 12]
    assert rows[-1]["perplexity"] == pytest.approx(np.exp(rows[-1]["validation_loss"]))
    assert rows[-1]["loss"] < rows[0]["loss"]
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["model"]["vocabulary_size"] == 1000
    assert {path.name for path in out.iterdir()} == {"config.yaml", "metrics.jsonl", "tensorboard", "tokenizer.json", "checkpoints"}
    # Each validation is the best so far, and a best one is kept.
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["best", "step-00000006", "step-00000012"]
    # One rank speaks: every line of the log comes once.
    assert ended.output.count("validation perplexity") == 1
    assert f"over {'MPI' if controller == 'mpi' else 'Gloo'}" in ended.output


def test_a_saved_configuration_repeats_the_run(framework: str, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    pools.hvd_lm(1, "train", "--framework", framework, "--out", first, *TINY, "--steps", "4")
    pools.hvd_lm(1, "train", "--config", first / "config.yaml", "--out", second, framework=framework)
    np.testing.assert_allclose(launcher.losses(second), launcher.losses(first), rtol=1e-6)


def test_a_second_run_moves_the_first_aside(tmp_path: Path, framework: str) -> None:
    for steps in (2, 3):
        pools.hvd_lm(1, "train", "--framework", framework, "--out", tmp_path, *TINY, "--steps", str(steps))
    assert len(launcher.metrics(tmp_path)) == 3
    assert len(launcher.metrics(tmp_path / "earlier-1")) == 2


@pytest.mark.parametrize("framework", INSTALLED[-1:])  # other ways to cut a text, in both: test_exact_loss.py
def test_evaluate_gives_one_figure_whatever_the_ranks(framework: str, trained: Path) -> None:
    """Of the text that the run held back, by the other framework's checkpoint."""
    figures = []
    command = ["evaluate", "--checkpoint", trained, "--framework", framework, "--batch-size"]
    for ranks in (1, 2):
        ended = pools.hvd_lm(ranks, *command, str(8 // ranks))
        figures.append(json.loads(ended.output[ended.output.index('{"loss"') :].splitlines()[0]))
    assert figures[0]["tokens"] == figures[1]["tokens"] > 70_000
    assert figures[0]["perplexity"] < 700
    assert figures[1]["loss"] == pytest.approx(figures[0]["loss"], rel=1e-6)


def test_generate_writes_the_same_text_in_any_framework(trained: Path) -> None:
    command = ["generate", "--checkpoint", trained, "--prompt", "The value", "--length", "20"]

    def write(framework: str, seed: str) -> str:
        return pools.hvd_lm(1, *command, "--framework", framework, "--seed", seed).output

    text = launcher.hvd_lm(1, *command, "--seed", "3").expect_success().output
    assert text.startswith("The value")
    assert len(text.split()) > 12
    for framework in INSTALLED:
        assert write(framework, "3") == text
        assert write(framework, "4") != text


def test_an_absent_framework_is_one_line(framework: str, tmp_path: Path) -> None:
    hide(framework, tmp_path)
    ended = launcher.hvd_lm(1, "train", "--framework", framework, "--out", tmp_path / "run", *TINY, PYTHONPATH=str(tmp_path))
    assert ended.code == 2
    assert ended.output.strip() == f"hvd-lm: error: {framework} is not installed: pip install 'hvd_lm[{framework}]'"


def test_a_framework_that_breaks_as_it_loads_is_one_line(framework: str, tmp_path: Path) -> None:
    (tmp_path / f"{framework}.py").write_text("raise RuntimeError('a file of it is gone')")
    ended = launcher.hvd_lm(1, "train", "--framework", framework, "--out", tmp_path / "run", *TINY, PYTHONPATH=str(tmp_path))
    assert ended.code == 2
    assert ended.output.splitlines() == [
        f"hvd-lm: error: {framework} with Horovod does not load (a file of it is gone): "
        "run python -m hvd_lm.job.build_horovod, then hvd-lm doctor"
    ]


@pytest.mark.parametrize("framework", INSTALLED[:1])  # pipelines by all-to-all in both: test_layer_split.py
def test_a_pipeline_over_mpi_goes_on_without_mpi4py(framework: str, tmp_path: Path) -> None:
    hide("mpi4py", tmp_path)
    ended = launcher.hvd_lm(
        2, "train", "--framework", framework, "--out", tmp_path / "run", *TINY, "--steps", "2", "--model-parallel", "2",
        "--split", "layers", controller="mpi", PYTHONPATH=os.pathsep.join((str(tmp_path), os.environ.get("PYTHONPATH", ""))),
    ).expect_success()  # fmt: skip
    assert "activations by Horovod's all-to-all, as mpi4py is not installed: pip install 'hvd_lm[mpi]'" in ended.output


def test_doctor_is_green() -> None:
    ended = launcher.run("hvd-lm", "doctor").expect_success()
    assert "[FAIL]" not in ended.output
    assert ended.output.count("right on 2 ranks") >= 2
    if "over mpi: right" in ended.output:
        assert "mpi4py's messages pass beside Horovod's" in ended.output


# --- job files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "framework"),
    [("local_gloo.sh", INSTALLED[-1]), ("local_mpi.sh", INSTALLED[0]), ("several_hosts.sh", INSTALLED[0])],
)
def test_job_files_run(name: str, framework: str, tmp_path: Path) -> None:
    """Each as it is, at the reference sizes, but for two steps only."""
    from hvd_lm.data.corpus import embedded_corpus

    text = tmp_path / "text.txt"
    # The reference vocabulary of 10000 needs more words than the corpus has: numbers make up the rest.
    text.write_text(embedded_corpus() + "\n" + " ".join(map(str, range(5000))) + "\n")
    ended = launcher.run(
        JOBS / name, text, "--steps", "2", "--backward-passes-per-step", "2", "--validation-share", "0",
        FRAMEWORK=framework, OUT=str(tmp_path / "run"), HOSTS="localhost:2", timeout=400,
    ).expect_success()  # fmt: skip
    assert len(launcher.metrics(tmp_path / "run")) == 2
    assert "vocabulary 10000, embedding 300, 2 LSTM layer(s) of 1024" in ended.output


# --- bad input -------------------------------------------------------------------------------------------


BAD_INPUTS = {
    "missing file": ("--data {folder}/missing.txt", "missing.txt: No such file"),
    "empty file": ("--data {folder}/empty.txt", "empty.txt is empty"),
    "not text": ("--data {folder}/binary.txt", "is not UTF-8 text"),
    "vocabulary too large": ("--vocabulary-size 1000000", "set --vocabulary-size"),
    "text too short": ("--data {folder}/short.txt --batch-size 64", "smaller batch"),
    "unknown flag value": ("--compression fp8", "--compression must be one of none, fp16, powersgd, topk, not 'fp8'"),
    "unknown flag": ("--hidden-sice 3", "--hidden-sice"),
    "missing configuration": ("--config {folder}/none.yaml", "none.yaml"),
    "folder not writable": ("--out {folder}/file/run", "cannot write to --out"),
    "impossible topology": ("--model-parallel 5", "topology does not fit"),
}
"""Name -> flags, and what the one line of the error must say."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "short.txt").write_text("only a few words\n")
    (tmp_path / "binary.txt").write_bytes(b"text \xff\xfe\n")
    (tmp_path / "file").write_text("no folder")
    return tmp_path


def bad_flags(name: str, folder: Path) -> list[str]:
    return ["--out", f"{folder}/run", *BAD_INPUTS[name][0].format(folder=folder).split()]


def said(ended: launcher.Ended) -> list[str]:
    """The lines of hvd-lm in what a job printed, the launcher's own left out."""
    return [line for line in ended.output.splitlines() if "hvd-lm: " in line]


@pytest.mark.parametrize("name", BAD_INPUTS)
def test_bad_input_alone_is_one_line(name: str, folder: Path) -> None:
    ended = launcher.hvd_lm(1, "train", *bad_flags(name, folder), timeout=SECONDS_TO_END)
    assert ended.code == 2
    assert BAD_INPUTS[name][1] in ended.output
    assert ended.output.startswith("hvd-lm: error: ")
    assert len(ended.output.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "controller"),
    [
        ("missing file", "gloo"),
        ("empty file", "mpi"),
        ("text too short", "gloo"),
        ("unknown flag", "mpi"),
        ("folder not writable", "gloo"),
        ("impossible topology", "gloo"),
    ],  # of each place in which they are found
)
def test_bad_input_in_a_job_is_one_line_on_one_rank(name: str, controller: str, folder: Path) -> None:
    ended = launcher.hvd_lm(2, "train", *bad_flags(name, folder), controller=controller, timeout=SECONDS_TO_END)
    assert ended.code != 0
    assert len(said(ended)) == 1, ended.output
    assert BAD_INPUTS[name][1] in said(ended)[0]
    assert "Traceback" not in ended.output


@pytest.mark.parametrize(("ranks", "controller", "words"), [(2, "gloo", "needs MPI or NCCL"), (3, "mpi", "data ranks, not 3")])
def test_adasum_where_it_cannot_work_is_refused(ranks: int, controller: str, words: str, tmp_path: Path) -> None:
    ended = launcher.hvd_lm(
        ranks, "train", "--framework", INSTALLED[0], "--out", tmp_path, *TINY, "--reduction", "adasum", controller=controller,
        timeout=SECONDS_TO_END,
    )  # fmt: skip
    assert ended.code != 0
    assert len(said(ended)) == 1, ended.output
    assert words in said(ended)[0]


def test_an_absent_framework_ends_the_job(framework: str, tmp_path: Path) -> None:
    hide(framework, tmp_path)
    ended = launcher.hvd_lm(
        2, "train", "--framework", framework, "--out", tmp_path / "run", PYTHONPATH=str(tmp_path), timeout=SECONDS_TO_END
    )
    assert ended.code != 0
    assert len(said(ended)) == 1, ended.output
    assert f"{framework} is not installed" in said(ended)[0]


@pytest.mark.parametrize(
    ("difference", "words"),
    [("missing.txt", "missing.txt: No such file"), ("other.txt", "1 of 2 ranks read another text")],
)
def test_what_only_rank_1_has_wrong_is_told(difference: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("one two three four\n" * 100)
    (tmp_path / "other.txt").write_text("one two three five\n" * 100)
    script = f'if [ "$HOROVOD_RANK" = 1 ]; then data={difference}; else data=text.txt; fi; '
    script += f"hvd-lm train --data {tmp_path}/$data --out {tmp_path}/run"
    ended = launcher.job(2, "bash", "-c", script, timeout=SECONDS_TO_END)
    assert ended.code != 0
    assert len(said(ended)) == 1, ended.output
    assert words in said(ended)[0]


@pytest.mark.parametrize(("framework", "ranks"), [(INSTALLED[0], 1), (INSTALLED[-1], 2)])
def test_a_loss_that_is_not_finite_ends_the_job_and_keeps_the_weights(framework: str, ranks: int, tmp_path: Path) -> None:
    ended = launcher.hvd_lm(
        ranks, "train", "--framework", framework, "--out", tmp_path, *TINY, "--steps", "30", "--learning-rate", "1e38",
        "--optimizer", "sgd", "--clip", "None", timeout=SECONDS_TO_END,
    )  # fmt: skip
    assert ended.code != 0
    assert len(said(ended)) == 1, ended.output
    assert "which was not applied: lower --learning-rate" in said(ended)[0]
    steps = len(launcher.metrics(tmp_path))
    assert 1 <= steps < 30
    assert (tmp_path / "checkpoints" / f"step-{steps:08d}" / "checkpoint.json").is_file()


@pytest.mark.parametrize(
    ("framework", "controller", "flags"),
    [
        (INSTALLED[-1], "gloo", ()),
        (INSTALLED[-1], "mpi", ()),
        (INSTALLED[0], "gloo", ("--model-parallel", "2")),
        (INSTALLED[-1], "gloo", ("--model-parallel", "2", "--split", "layers")),
        (INSTALLED[0], "mpi", ("--model-parallel", "2", "--split", "layers")),
    ],  # the other pairs over Gloo: test_resume.py
)
def test_a_rank_that_dies_ends_the_job(framework: str, controller: str, flags: tuple[str, ...], tmp_path: Path) -> None:
    """Killed in the middle of training: the job ends, and the metrics up to there are whole."""
    with ThreadPoolExecutor(1) as pool:
        ending = pool.submit(
            launcher.hvd_lm, 2, "train", "--framework", framework, "--out", tmp_path, *TINY, "--steps", "100000", *flags,
            controller=controller, timeout=4 * SECONDS_TO_END,
        )  # fmt: skip
        path = tmp_path / "metrics.jsonl"
        deadline = time.monotonic() + 2 * SECONDS_TO_END
        while not (path.exists() and path.read_text().count("\n") > 20):
            assert time.monotonic() < deadline, "training does not start"
            time.sleep(0.2)
        victim = next(process for process in ranks_of(tmp_path) if rank_of(process) == 1)
        killed_at = time.monotonic()
        victim.kill()
        ended = ending.result()
    assert time.monotonic() - killed_at < SECONDS_TO_END
    assert ended.code != 0
    assert [row["step"] for row in launcher.metrics(tmp_path)][:20] == list(range(1, 21))
    assert len(said(ended)) <= 1, ended.output


def ranks_of(out: Path) -> list[psutil.Process]:
    """The Python processes that train into `out`."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if str(out) in words and "python" in words[0] and any(word.endswith("/hvd-lm") for word in words[:2]):
            found.append(process)
    return found


def rank_of(process: psutil.Process) -> int:
    environment = process.environ()
    return int(environment.get("HOROVOD_RANK", environment.get("OMPI_COMM_WORLD_RANK", -1)))
