"""What goes wrong on one rank is raised by all of them, soon, with one exit code; the weights are kept, and nobody waits."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import Any

import launcher
import pools
import pytest
from conftest import INSTALLED

import hvd_lm
from hvd_lm import checkpoint as checkpoints

pytestmark = pytest.mark.ranks

SECONDS = 100
"""Until all ranks have raised, imports on a busy machine included; Horovod would wait for 600."""


def ranks(framework: str, case: str, rank: int, out: Path) -> list[dict[str, Any]]:
    """What each of two ranks raised."""
    return pools.body("troubled", 2, framework, case, str(rank), out, timeout=SECONDS)


AT_START = [
    ("device", 1, "ConfigError", 2, "no GPU is left for local rank 1"),
    ("build", 1, "OutOfMemoryError", 3, "the memory is used up: take a smaller batch"),
    ("weights", 0, "CheckpointError", 2, "it has other weights"),
    ("outlets", 0, "ConfigError", 2, "No space left on device; make room there"),
    ("settings", 1, "ConfigError", 2, "1 of 2 ranks have another --batch-size than rank 0 (5 instead of 2: rank 1 on "),
]
"""Case, the rank in trouble, and what the other one raises."""

LATER = [
    ("read", 1, "DataError", 2, "cannot read the training text", 4),
    ("quiet read", 1, "DataError", 2, "cannot read the training text", 5),
    ("bug", 1, "BugError", 1, "ZeroDivisionError: by zero", 4),
    ("metrics", 0, "ConfigError", 2, "No space left on device; make room there", 5),
    ("validation", 1, "ConfigError", 2, "cannot read it again", 6),
    ("checkpoint", 0, "CheckpointError", 2, "No space left on device", None),
    ("last checkpoint", 0, "CheckpointError", 2, "No space left on device", 6),
    ("drift", 1, "TrainingError", 3, "the weights of rank 1 on ", 6),
]
"""And the step of the last checkpoint."""


def check(found: list[dict[str, Any]], rank: int, kind: str, code: int, words: str) -> None:
    other = found[1 - rank]
    assert (other["kind"], other["code"]) == (kind, code), other
    assert words in other["message"]
    assert kind == "BugError" or "\n" not in other["message"]
    if kind not in ("BugError", "OutOfMemoryError"):
        assert (found[rank]["kind"], found[rank]["code"]) == (kind, code)


@pytest.mark.parametrize(("case", "rank", "kind", "code", "words"), AT_START, ids=[case[0] for case in AT_START])
def test_what_goes_wrong_at_the_start(case: str, rank: int, kind: str, code: int, words: str, tmp_path: Path) -> None:
    check(ranks(INSTALLED[0], case, rank, tmp_path), rank, kind, code, words)
    assert not (tmp_path / ".lock").exists()


@pytest.mark.parametrize(("case", "rank", "kind", "code", "words", "kept"), LATER, ids=[case[0] for case in LATER])
def test_what_goes_wrong_later(
    framework: str, case: str, rank: int, kind: str, code: int, words: str, kept: int | None, tmp_path: Path
) -> None:
    """In both frameworks: it travels with their loss."""
    check(ranks(framework, case, rank, tmp_path), rank, kind, code, words)
    if kept is None:
        assert not checkpoints.exists(tmp_path)
    else:
        assert checkpoints.load(tmp_path).step == kept


def test_replicas_that_differ_by_rounding_are_mended(framework: str, tmp_path: Path) -> None:
    found = ranks(framework, "rounding", 1, tmp_path)
    assert [one["kind"] for one in found] == [None, None]
    first, second = (one["mended"] for one in found)
    assert first == second
    assert len(first) == 2, "at both validations"
    assert all(1e-7 < distance < 1e-5 for distances, _ in first for distance in distances)
    assert all(len(distances) == 1 for distances, _ in first)


def test_replicas_stay_the_same_by_themselves(framework: str, tmp_path: Path) -> None:
    """The check of them costs no broadcast."""
    flags = ["--vocabulary-size", "40", "--embedding-size", "6", "--hidden-size", "8", "--steps", "4", "--validation-every", "1"]
    text = Path(__file__).parent / "assets" / "format1" / "text.txt"
    done = pools.hvd_lm(2, "train", "--framework", framework, "--data", text, "--out", tmp_path, *flags, "--batch-size", "2")
    assert "were not those of rank 0" not in done.output


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two models and two texts."""
    folder = tmp_path_factory.mktemp("trained")
    text = (Path(__file__).parent / "assets" / "format1" / "text.txt").read_text()
    (folder / "text.txt").write_text(text)
    (folder / "other.txt").write_text(text[: len(text) // 2])
    for seed, name in enumerate(("run", "other")):
        hvd_lm.train(
            hvd_lm.RunConfig(
                framework=INSTALLED[0], out=folder / name, steps=1, seed=seed, threads=1,
                model=hvd_lm.ModelConfig(embedding_size=6, hidden_size=8),
                data=hvd_lm.DataConfig(data=(folder / "text.txt",), batch_size=2, sequence_length=8),
            )
        )  # fmt: skip
    return folder


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("text", "1 of 2 ranks read another text than rank 0 (rank 1 on "),
        ("model", "1 of 2 ranks have another model than rank 0 (rank 1 on "),
        ("batch", "1 of 2 ranks have another --batch-size than rank 0 (3 instead of 2: rank 1 on "),
    ],
)
def test_evaluate_wants_the_same_on_all_ranks(trained: Path, case: str, words: str) -> None:
    for found in ranks(INSTALLED[0], f"evaluate {case}", 1, trained):
        assert (found["kind"], found["code"]) == ("ConfigError", 2)
        assert words in found["message"]


def test_evaluate_takes_copies_of_the_same(trained: Path, tmp_path: Path) -> None:
    """In folders of their own, as hosts have them."""
    for rank in range(2):
        shutil.copytree(trained, tmp_path / str(rank))
    alone = hvd_lm.evaluate(trained / "run", [trained / "text.txt"], framework=INSTALLED[0], threads=1).loss
    script = (
        f"cd {tmp_path}/$HOROVOD_RANK; exec hvd-lm evaluate --framework {INSTALLED[0]} --checkpoint run --data text.txt --threads 1"
    )
    ended = launcher.job(2, "bash", "-c", script).expect_success()
    assert f'"loss": {alone:.6f}'[:-1] in ended.output


@pytest.mark.skipif(len(INSTALLED) < 2, reason="one framework is installed")
def test_ranks_of_different_frameworks_meet_and_say_so(tmp_path: Path) -> None:
    text = Path(__file__).parent / "assets" / "format1" / "text.txt"
    script = f"names=({' '.join(INSTALLED)}); exec hvd-lm train --framework ${{names[$HOROVOD_RANK]}} --threads 1 "
    script += f"--data {text} --out {tmp_path} --vocabulary-size 40 --embedding-size 6 --hidden-size 8 --batch-size 2"
    ended = launcher.job(2, "bash", "-c", script, timeout=SECONDS)
    assert ended.code != 0
    (line,) = (line for line in ended.output.splitlines() if "hvd-lm: " in line)
    assert f"1 of 2 ranks run another framework than rank 0 ({INSTALLED[1]} " in line
    assert f" instead of {INSTALLED[0]} " in line


def test_a_full_disk_under_the_metrics_ends_the_job_with_one_line(tmp_path: Path) -> None:
    flags = "--vocabulary-size 40 --embedding-size 6 --hidden-size 8 --batch-size 2 --sequence-length 8 --steps 100000"
    text = Path(__file__).parent / "assets" / "format1" / "text.txt"
    script = 'if [ "$HOROVOD_RANK" = 0 ]; then ulimit -f 24; fi; '
    script += (
        f"exec hvd-lm train --framework {INSTALLED[0]} --data {text} --out {tmp_path} --checkpoint-every 100000 {flags} --threads 1"
    )
    ended = launcher.job(2, "bash", "-c", script, timeout=90)
    assert ended.code != 0
    lines = [line for line in ended.output.splitlines() if "hvd-lm: " in line]
    assert len(lines) == 1, ended.output
    assert f"cannot write to --out {tmp_path}: File too large" in lines[0]
    assert "Traceback" not in ended.output


def amid_reductions(framework: str, case: str, rank: str, code: int, out: Path) -> tuple[str, str]:
    """The one line that a job says, and all of its output."""
    body = launcher.BODIES / "out_of_memory.py"
    ended = launcher.job(2, sys.executable, body, framework, case, rank, out, timeout=SECONDS)
    assert f"Exit code: {code}" in ended.output
    (line,) = (line for line in ended.output.splitlines() if "hvd-lm: " in line)
    return line, ended.output


def test_memory_that_ends_amid_reductions_ends_the_job(framework: str, tmp_path: Path) -> None:
    """The other rank waits for gradients: this one tells it that it goes, and the user why; the other one says nothing."""
    line, output = amid_reductions(framework, "memory", "1", 3, tmp_path)
    assert "hvd-lm: error: the memory is used up (what was asked for: " in line
    assert "take a smaller batch" in line
    assert "(rank 1 on " in line
    assert "Traceback" not in output


def test_memory_that_ends_on_all_ranks_is_told_by_one(tmp_path: Path) -> None:
    line, _ = amid_reductions(INSTALLED[0], "memory", "all", 3, tmp_path)
    assert re.search(r"\(rank \d on ", line), "rank 0, unless the machine holds it up for longer than the others give it"


def test_a_bug_amid_reductions_is_told_by_the_rank_that_has_it(tmp_path: Path) -> None:
    line, output = amid_reductions(INSTALLED[0], "bug", "1", 1, tmp_path)
    assert "this is a bug in hvd_lm" in line
    assert output.count("ZeroDivisionError: by zero") == 1


def test_levers_of_a_second_job_in_a_process_are_said_to_change_nothing(tmp_path: Path) -> None:
    """Horovod reads them when it starts, and with several ranks it starts once."""
    flags = ["train", "--framework", INSTALLED[0], *launcher.SMALL, "--steps", "1", "--backward-passes-per-step", "1"]
    assert "stay as they were" not in pools.hvd_lm(2, *flags, "--out", tmp_path / "one").output
    done = pools.hvd_lm(2, *flags, "--out", tmp_path / "two", "--cycle-time-ms", "2")
    assert "warning: --cycle-time-ms stay as they were for the first job of this process" in done.output
