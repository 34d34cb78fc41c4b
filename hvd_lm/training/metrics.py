"""What rank 0 tells of a run: DIR/metrics.jsonl, TensorBoard files, and a progress bar or plain lines."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from tqdm import tqdm

from hvd_lm.checkpoint.files import replace_file
from hvd_lm.errors import ConfigError
from hvd_lm.training.folder import writing

Row = dict[str, Any]
Callback = Callable[[Row], object]
"""Is given the row of each step, once it is in ``metrics.jsonl``; what it returns counts for nothing."""


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

    def __init__(self, out: Path, total_steps: int, goes_on_after: int = 0, callbacks: Sequence[Callback] = ()) -> None:
        """A run that goes on keeps its rows up to step `goes_on_after`; later ones will come again, to the `callbacks`, too.

        Raises ConfigError, as `write` does, if something cannot be written.
        """
        self._out, self._callbacks = out, callbacks
        path = out / "metrics.jsonl"
        with writing(out):
            self.last_step = _cut_rows(path, goes_on_after)
            """Of the rows that were there; 0 if there were none."""
            # Unbuffered: what could not be written does not come again when the file is closed.
            self._file = path.open("ab", buffering=0)
            self._board = TensorBoard(out / "tensorboard", goes_on_after)
        self._total, self._begun_after, self._began = total_steps, goes_on_after, time.monotonic()
        interactive = sys.stderr.isatty()
        self._bar = tqdm(total=total_steps, initial=goes_on_after, unit="step", dynamic_ncols=True) if interactive else None
        self._last_line = -math.inf

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()
        try:
            with writing(self._out), self._file:
                self._board.close()
        except ConfigError:
            if error is None:  # which may be the same, in the words of the row that met it
                raise

    def write(self, row: Row) -> None:
        plain = finite(row)
        with writing(self._out):
            _write_whole(self._file, (json.dumps(plain) + "\n").encode())
            self._board.write(row["step"], plain)
        for callback in self._callbacks:
            _call(callback, plain)
        self._show(row)
        if "sample" in row:
            self.say(f"step {row['step']} writes: {row['sample']}")

    def say(self, message: str) -> None:
        if self._bar is not None:
            self._bar.write(message, file=sys.stderr)
        else:
            print(message, file=sys.stderr, flush=True)

    def _show(self, row: Row) -> None:
        against = f" over {row['sampled_words']} sampled words" if "sampled_words" in row else ""
        text = (
            f"loss {row['loss']:.4f}{against}  {row['tokens_per_second']:,.0f} tokens/s  gradient norm {row['gradient_norm']:.3g}"
        )
        if row.get("skipped"):
            text += f"  SKIPPED: gradient overflow, loss scale now {row['loss_scale']:g}"
        notable = row.get("skipped") or "validation_loss" in row or row["step"] in (1, self._total)
        if "validation_loss" in row:
            judged = f"accuracy {row['accuracy']:.2%}" if "accuracy" in row else f"perplexity {row['perplexity']:.1f}"
            text += f"  validation loss {row['validation_loss']:.4f}  {judged}"
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {row['loss']:.4f}, {row['tokens_per_second']:,.0f} tokens/s")
            self._bar.update()
            if "validation_loss" in row or row.get("skipped"):
                self.say(f"step {row['step']}: {text}")
        elif notable or time.monotonic() - self._last_line >= self._SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            self.say(f"step {row['step']}/{self._total}  {text}{self._left(row['step'])}")

    def _left(self, step: int) -> str:
        """How long the rest takes if its steps, validations and checkpoints go as those so far."""
        seconds = (time.monotonic() - self._began) / (step - self._begun_after) * (self._total - step)
        return f"  {tqdm.format_interval(seconds)} left" if seconds else ""


def _call(callback: Callback, row: Row) -> None:
    """Raises ConfigError from whatever it raises: ranks tell each other what went wrong in words."""
    try:
        callback(dict(row))
    except Exception as error:
        name = getattr(callback, "__qualname__", type(callback).__qualname__)
        raise ConfigError(f"the callback {name} raised {type(error).__name__}: {' '.join(str(error).split())}") from error


def finite(row: Row) -> Row:
    """What JSON can hold of `row`: it knows no infinity, so the norm of an overflowed gradient becomes None."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}


def _cut_rows(path: Path, last_step: int) -> int:
    """Drop the rows after `last_step`, and a last row that a killed run left incomplete; the step of the last row that stays."""
    kept, found = [], 0
    if not path.exists():
        return found
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        with suppress(ValueError, TypeError, KeyError):
            if (step := json.loads(line)["step"]) <= last_step:
                kept.append(line)
                found = step
    replace_file(path, "".join(kept))
    return found


def _write_whole(file: FileIO, content: bytes) -> None:
    """A full disk takes a part of what it is given, and raises OSError for the rest."""
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) :]


class TensorBoard:
    """The scalars of rows, as a file for TensorBoard. Written by the caller: a thread of tensorboardX's would die of an error."""

    _SECONDS_BETWEEN_FLUSHES = 120.0

    def __init__(self, folder: Path, last_step: int) -> None:
        """What came after `last_step` is hidden by TensorBoard, and comes again."""
        # tensorboardX imports torch wherever it finds it; a TensorFlow run should not pay for that.
        hide = "torch" not in sys.modules
        if hide:
            sys.modules["torch"] = None  # type: ignore[assignment]
        try:
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto.event_pb2 import Event, SessionLog
        finally:
            if hide:
                del sys.modules["torch"]
        self._event = Event
        folder.mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(str(folder / "events"))
        if last_step:
            self._writer.write_event(Event(step=last_step + 1, file_version="brain.Event:2"))
            self._writer.write_event(Event(step=last_step + 1, session_log=SessionLog(status=SessionLog.START)))
        self._flushed = -math.inf

    def write(self, step: int, row: Mapping[str, Any]) -> None:
        """Raises OSError, here or when it is closed."""
        event = self._event(wall_time=time.time(), step=step)
        for name, value in row.items():
            if name not in ("step", "seconds") and isinstance(value, (int, float)):
                event.summary.value.add(tag=name, simple_value=float(value))
        self._writer.write_event(event)
        if time.monotonic() - self._flushed >= self._SECONDS_BETWEEN_FLUSHES:
            self._writer.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        """Raises OSError."""
        self._writer.close()
