"""What rank 0 tells of a run: DIR/metrics.jsonl, TensorBoard files, and a progress bar or plain lines."""

from __future__ import annotations

import json
import math
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from tqdm import tqdm

Row = dict[str, Any]


class Metrics(Protocol):
    """Where the loop sends its rows and messages."""

    def write(self, row: Row) -> None: ...

    def say(self, message: str) -> None: ...


class SilentMetrics:
    """For the ranks that do not write."""

    def write(self, row: Row) -> None:
        pass

    def say(self, message: str) -> None:
        pass


class MetricsWriter:
    """One JSON object per optimizer step in ``metrics.jsonl``, flushed at once, so that a crash loses nothing."""

    _SECONDS_BETWEEN_LINES = 1.0

    def __init__(self, out: Path, total_steps: int, goes_on_after: int = 0) -> None:
        """A run that goes on keeps its rows up to step `goes_on_after`; later ones will come again."""
        path = out / "metrics.jsonl"
        _cut_rows(path, goes_on_after)
        self._file = path.open("a", encoding="utf-8")
        self._board = _tensorboard(out / "tensorboard", goes_on_after)
        self._total = total_steps
        interactive = sys.stderr.isatty()
        self._bar = tqdm(total=total_steps, initial=goes_on_after, unit="step", dynamic_ncols=True) if interactive else None
        self._last_line = -math.inf

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()
        self._board.close()
        self._file.close()

    def write(self, row: Row) -> None:
        plain = finite(row)
        self._file.write(json.dumps(plain) + "\n")
        self._file.flush()
        for name, value in plain.items():
            if name not in ("step", "seconds") and isinstance(value, (int, float)):
                self._board.add_scalar(name, value, row["step"])
        self._show(row)

    def say(self, message: str) -> None:
        if self._bar is not None:
            self._bar.write(message, file=sys.stderr)
        else:
            print(message, file=sys.stderr, flush=True)

    def _show(self, row: Row) -> None:
        text = f"loss {row['loss']:.4f}  {row['tokens_per_second']:,.0f} tokens/s  gradient norm {row['gradient_norm']:.3g}"
        if row.get("skipped"):
            text += f"  SKIPPED: gradient overflow, loss scale now {row['loss_scale']:g}"
        notable = row.get("skipped") or "validation_loss" in row or row["step"] in (1, self._total)
        if "validation_loss" in row:
            text += f"  validation loss {row['validation_loss']:.4f}  perplexity {row['perplexity']:.1f}"
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {row['loss']:.4f}, {row['tokens_per_second']:,.0f} tokens/s")
            self._bar.update()
            if "validation_loss" in row or row.get("skipped"):
                self.say(f"step {row['step']}: {text}")
        elif notable or time.monotonic() - self._last_line >= self._SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            self.say(f"step {row['step']}/{self._total}  {text}")


def finite(row: Row) -> Row:
    """What JSON can hold of `row`: it knows no infinity, so the norm of an overflowed gradient becomes None."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}


def _cut_rows(path: Path, last_step: int) -> None:
    """Drop the rows after `last_step`, and a last row that a killed run left incomplete."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        with suppress(ValueError, TypeError, KeyError):
            if json.loads(line)["step"] <= last_step:
                kept.append(line)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text("".join(kept), encoding="utf-8")
    partial.rename(path)


def _tensorboard(folder: Path, last_step: int) -> Any:
    """A TensorBoard writer. tensorboardX imports torch wherever it finds it; a TensorFlow run should not pay for that."""
    hide = "torch" not in sys.modules
    if hide:
        sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        from tensorboardX import SummaryWriter
    finally:
        if hide:
            del sys.modules["torch"]
    # What came after this step is hidden by TensorBoard, and comes again.
    return SummaryWriter(str(folder), purge_step=last_step + 1 if last_step else None)
