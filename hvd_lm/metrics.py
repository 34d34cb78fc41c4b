"""What rank 0 tells of a run: DIR/metrics.jsonl, TensorBoard files, and a progress bar or plain lines."""

from __future__ import annotations

import json
import math
import sys
import time
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

    def __init__(self, out: Path, total_steps: int) -> None:
        self._file = (out / "metrics.jsonl").open("w", encoding="utf-8")
        self._board = _tensorboard(out / "tensorboard")
        self._total = total_steps
        self._bar = tqdm(total=total_steps, unit="step", dynamic_ncols=True) if sys.stderr.isatty() else None
        self._last_line = -math.inf

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()
        self._board.close()
        self._file.close()

    def write(self, row: Row) -> None:
        # JSON knows no infinity: the norm of an overflowed gradient becomes null.
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        self._file.write(json.dumps(finite) + "\n")
        self._file.flush()
        for name, value in finite.items():
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


def _tensorboard(folder: Path) -> Any:
    """A TensorBoard writer. tensorboardX imports torch wherever it finds it; a TensorFlow run should not pay for that."""
    hide = "torch" not in sys.modules
    if hide:
        sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        from tensorboardX import SummaryWriter
    finally:
        if hide:
            del sys.modules["torch"]
    return SummaryWriter(str(folder))
