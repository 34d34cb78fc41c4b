"""What rank 0 tells of a run: metrics.jsonl, TensorBoard files, progress on stderr."""

from __future__ import annotations

import io
import json
import math
import resource
import struct
import sys
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.proto.event_pb2 import Event

from hvd_lm.errors import ConfigError
from hvd_lm.training.metrics import MetricsWriter, SilentMetrics


def row(step: int, **more: Any) -> dict[str, Any]:
    """A row as the training loop writes it."""
    return {
        "step": step,
        "epoch": 1,
        "loss": 5.25 - step / 8,
        "tokens": 256 * step,
        "tokens_per_second": 1234.5,
        "learning_rate": 1e-3,
        "gradient_norm": 0.75,
        "seconds": 0.5 * step,
        **more,
    }


def lines_of(out: Path) -> list[dict[str, Any]]:
    """The rows in the file, by a parser that knows no infinity."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    text = (out / "metrics.jsonl").read_text(encoding="utf-8")
    assert text == "" or text.endswith("\n")
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def scalars_of(out: Path) -> dict[str, list[tuple[int, float]]]:
    """Name -> (step, value) in the TensorBoard files: records of length, checksum, event, checksum."""
    found: dict[str, list[tuple[int, float]]] = {}
    for path in sorted((out / "tensorboard").glob("events.out.tfevents.*")):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            event = Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


class Terminal(io.StringIO):
    """A stderr that calls itself a terminal."""

    def isatty(self) -> bool:
        return True


# --- metrics.jsonl ---------------------------------------------------------------------------------------


def test_one_json_line_per_row(tmp_path: Path) -> None:
    rows = [row(1), row(2, validation_loss=4.5, perplexity=90.0), row(3, skipped=True, skipped_steps=1, loss_scale=4096.0)]
    with MetricsWriter(tmp_path, total_steps=3) as metrics:
        for one in rows:
            metrics.write(one)
    assert lines_of(tmp_path) == rows


def test_rows_can_be_read_before_the_end(tmp_path: Path) -> None:
    """A crash loses nothing."""
    with MetricsWriter(tmp_path, total_steps=9) as metrics:
        for step in range(1, 4):
            metrics.write(row(step))
            assert [one["step"] for one in lines_of(tmp_path)] == list(range(1, step + 1))


def test_infinities_become_null(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path, total_steps=3) as metrics:
        for step, norm in enumerate((math.inf, -math.inf, math.nan), start=1):
            metrics.write(row(step, gradient_norm=norm, skipped=True, loss_scale=1024.0))
    assert [one["gradient_norm"] for one in lines_of(tmp_path)] == [None, None, None]
    assert [one["loss"] for one in lines_of(tmp_path)] == [row(step)["loss"] for step in (1, 2, 3)]


def test_row_stays_as_it_was(tmp_path: Path) -> None:
    one = row(1, gradient_norm=math.inf)
    with MetricsWriter(tmp_path, total_steps=1) as metrics:
        metrics.write(one)
    assert one == row(1, gradient_norm=math.inf)


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the metrics, and of TensorBoard's file, which is written now and then; nothing is written at the end any more."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def write_many(out: Path) -> None:
        out.mkdir()
        with MetricsWriter(out, total_steps=9999) as metrics:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
            for step in range(1, 9999):
                metrics.write(row(step))

    for name in ("rows", "board"):
        if name == "board":
            monkeypatch.setattr("hvd_lm.training.metrics._write_whole", lambda *_: None)
        try:
            with pytest.raises(ConfigError, match=f"cannot write to --out {tmp_path / name}: File too large; .*name another place"):
                write_many(tmp_path / name)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    whole = (tmp_path / "rows" / "metrics.jsonl").read_text().splitlines()[:-1]
    assert [json.loads(line)["step"] for line in whole] == list(range(1, len(whole) + 1))
    assert len(whole) > 40


def test_file_is_closed_after_an_error(tmp_path: Path) -> None:
    metrics = MetricsWriter(tmp_path, total_steps=3)

    def crash() -> None:
        with metrics:
            metrics.write(row(1))
            raise RuntimeError("crash")

    with pytest.raises(RuntimeError, match="crash"):
        crash()
    assert len(lines_of(tmp_path)) == 1
    with pytest.raises(ValueError, match="closed"):
        metrics.write(row(2))


# --- TensorBoard -----------------------------------------------------------------------------------------


def test_tensorboard_file_holds_the_scalars(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path, total_steps=2) as metrics:
        metrics.write(row(1))
        metrics.write(row(2, validation_loss=4.5, perplexity=90.0))
    scalars = scalars_of(tmp_path)
    assert scalars["loss"] == [(1, 5.125), (2, 5.0)]
    assert scalars["validation_loss"] == [(2, 4.5)]
    assert scalars["gradient_norm"] == [(1, 0.75), (2, 0.75)]
    assert "step" not in scalars


def test_tensorboard_file_leaves_infinities_out(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path, total_steps=2) as metrics:
        metrics.write(row(1, gradient_norm=math.inf))
        metrics.write(row(2))
    assert scalars_of(tmp_path)["gradient_norm"] == [(2, 0.75)]


# --- stderr ----------------------------------------------------------------------------------------------


def test_plain_lines_when_stderr_is_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with MetricsWriter(tmp_path, total_steps=3) as metrics:
        metrics.say("hello")
        metrics.write(row(1))
        metrics.write(row(2, validation_loss=4.5, perplexity=90.0171))
        metrics.write(row(3))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "\r" not in captured.err
    assert "\x1b" not in captured.err
    lines = captured.err.splitlines()
    assert lines[0] == "hello"
    assert lines[1].startswith("step 1/3  loss 5.1250  1,234 tokens/s")
    assert "validation loss 4.5000  perplexity 90.0" in lines[2]
    assert lines[-1].startswith("step 3/3")


def test_skipped_step_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with MetricsWriter(tmp_path, total_steps=9) as metrics:
        metrics.write(row(1))
        metrics.write(row(2, gradient_norm=math.inf, skipped=True, loss_scale=4096.0))
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("step 2/9")
    assert "SKIPPED" in line
    assert "loss scale now 4096" in line


def test_a_loss_over_sampled_words_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with MetricsWriter(tmp_path, total_steps=9) as metrics:
        metrics.write(row(1, sampled_words=200))
    assert "loss 5.1250 over 200 sampled words  " in capsys.readouterr().err


def test_progress_bar_on_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with MetricsWriter(tmp_path, total_steps=2) as metrics:
        metrics.say("hello")
        metrics.write(row(1))
        metrics.write(row(2, validation_loss=4.5, perplexity=90.0))
    shown = terminal.getvalue()
    assert "hello\n" in shown
    assert "\r" in shown
    assert "2/2" in shown
    assert "step 2: loss 5.0000" in shown


def test_silent_metrics_write_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    SilentMetrics().write(row(1))
    SilentMetrics().say("hello")
    assert capsys.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []
