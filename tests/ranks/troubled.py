"""Training and evaluation in which something goes wrong on one rank; what each rank has to raise.

horovodrun -np 2 python troubled.py torch read 1 OUT
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from common import checksum, report

import hvd_lm
from hvd_lm.adapters import adapter_class
from hvd_lm.adapters.base import Adapter
from hvd_lm.checkpoint import writer
from hvd_lm.data.streams import Streams
from hvd_lm.errors import ConfigError, HvdLmError
from hvd_lm.evaluation.exact_loss import _Reading
from hvd_lm.job import launcher
from hvd_lm.training import local_steps, metrics, replicas, snapshot
from hvd_lm.training.validations import Validations

TEXT = Path(__file__).parent.parent / "assets" / "format1" / "text.txt"


def config_of(framework: str, out: Path) -> hvd_lm.RunConfig:
    return hvd_lm.RunConfig(
        framework=framework,  # type: ignore[arg-type]
        out=out,
        steps=8,
        threads=1,
        validation_every=6,
        checkpoint_every=3,
        model=hvd_lm.ModelConfig(vocabulary_size=40, embedding_size=6, hidden_size=8, dropout=0.2),
        data=hvd_lm.DataConfig(data=(TEXT,), batch_size=2, sequence_length=8),
        communication=hvd_lm.CommunicationConfig(backward_passes_per_step=3),
    )


def fails(after: int, error: BaseException, real: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """Calls `real` so many times, then raises."""
    calls = 0

    def call(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > after:
            raise error
        return real(*arguments, **named) if real else None

    return call


def full_disk() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def drift(relative: float) -> Callable[[Validations], Any]:
    """A validation that comes upon weights which are not those of the other ranks."""
    validate = Validations.run

    def call(validations: Validations) -> Any:
        adapter = validations._adapter
        weights = adapter.weights()
        adapter.load_weights({**weights, "output_kernel": weights["output_kernel"] * np.float32(1 + relative)})
        return validate(validations)

    return call


def broken(framework: str, case: str) -> Any:
    """What to patch on the rank in trouble."""
    read = Streams.micro_batch
    match case:
        case "device":
            join = adapter_class(framework).job_class
            return patch.object(join, "_choose_device", fails(0, ConfigError("no GPU is left for local rank 1")))
        case "build":
            return patch.object(adapter_class(framework), "build", fails(0, MemoryError("no room for the model")))
        case "weights":
            return patch.object(snapshot, "initial_rows", fails(0, hvd_lm.CheckpointError("it has other weights")))
        case "outlets":
            return patch.object(metrics, "_cut_rows", fails(0, full_disk()))
        case "read" | "quiet read":
            return patch.object(Streams, "micro_batch", fails(13, FileNotFoundError(errno.ENOENT, "No such file", "text"), read))
        case "bug":
            return patch.object(Streams, "micro_batch", fails(13, ZeroDivisionError("by zero"), read))
        case "metrics":
            return patch.object(metrics, "_write_whole", fails(4, full_disk(), metrics._write_whole))
        case "validation":
            return patch.object(_Reading, "_read", fails(0, ConfigError("cannot read it again")))
        case "checkpoint":
            return patch.object(writer, "publish", fails(0, full_disk()))
        case "last checkpoint":
            return patch.object(writer, "publish", fails(2, full_disk(), writer.publish))
        case "rounding":
            return patch.object(Validations, "run", drift(1e-6))
        case "drift":
            return patch.object(Validations, "run", drift(0.5))
    raise AssertionError(case)


def main(framework: str, case: str, rank: str, out: str) -> dict[str, Any]:
    config, here = config_of(framework, Path(out)), launcher.launched_rank() == int(rank)
    found: dict[str, Any] = {"kind": None, "mended": []}
    mend = replicas.mend

    def noted(adapter: Adapter) -> dict[int, float]:
        distances = mend(adapter)
        found["mended"].append((list(distances.values()), checksum(adapter.weights())))
        return distances

    with ExitStack() as patched:
        patched.enter_context(patch.object(replicas, "mend", noted))
        if case == "quiet read":
            # Ranks tell each other in steps 1, 2, 3 and 6.
            patched.enter_context(patch.object(local_steps, "told_every", lambda _, __, most, ___: min(most, 4)))
            config = replace(config, communication=replace(config.communication, reduce_every=20))
        if case == "settings" and here:
            config = replace(config, data=replace(config.data, batch_size=5))
        elif case != "settings" and not case.startswith("evaluate") and here:
            patched.enter_context(broken(framework, case))
        try:
            if case.startswith("evaluate"):
                found["perplexity"] = evaluated(framework, case, here, Path(out))
            else:
                hvd_lm.train(config)
        except Exception as error:
            code = error.exit_code if isinstance(error, HvdLmError) else None
            found |= {"kind": type(error).__name__, "message": str(error), "code": code}
    return found


def evaluated(framework: str, case: str, here: bool, out: Path) -> float:
    """With another text, model or batch on the rank in question."""
    other = case.partition(" ")[2] if here else ""
    text = out / ("other.txt" if other == "text" else "text.txt")
    run = out / ("other" if other == "model" else "run")
    return hvd_lm.evaluate(run, [text], framework=framework, threads=1, batch_size=3 if other == "batch" else 2).loss  # type: ignore[arg-type]


if __name__ == "__main__":
    report(main(*sys.argv[1:]))
