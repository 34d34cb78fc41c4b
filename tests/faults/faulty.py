"""`hvd-lm` with a fault in it, on one rank at one moment.

    horovodrun -np 2 python faulty.py kill 1 training train --framework torch --data TEXT --out RUN ...

WHAT is what the process does then: kill or stop itself, kill its launcher, fill the disk of --out, wait until it is told to go on,
let something become NaN, or nothing, to time what follows. The folder in HVD_LM_FAULT is told when (`at`, with the process), and
tells when to go on (`go`).
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from hvd_lm.adapters import adapter_class
from hvd_lm.checkpoint import writer
from hvd_lm.command_line import commands
from hvd_lm.data import prepare
from hvd_lm.evaluation.exact_loss import _Reading
from hvd_lm.job import launcher
from hvd_lm.training import leg, loop, metrics, validations

FOLDER = Path(os.environ.get("HVD_LM_FAULT", ""))
FILLER = "filler"
LARGEST_DISK = 1 << 26
NUMBERS = {"validation": 11, "checkpoint": 3, "training": 6, "metrics": 6, "gradient": 11, "weights": 11, "validated weights": 2}
"""Which call meets it, where it is not the first. A step has 2 micro-batches, a validation 8 readings; a checkpoint is there."""


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def kill_launcher() -> None:
    """The process that was started first."""
    its = [process for process in psutil.Process().parents() if _is_of_job(process)]
    its[-1].kill()


def _is_of_job(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return process.environ().get("HVD_LM_FAULT") == str(FOLDER)
    return False


def fill() -> None:
    """To the last byte."""
    out = Path(sys.argv[sys.argv.index("--out") + 1])
    assert shutil.disk_usage(out).total <= LARGEST_DISK, f"{out} is on no small disk"
    for piece in (bytes(1 << 12), b"0"):
        with (out / FILLER).open("ab", buffering=0) as file, suppress(OSError):
            while True:
                file.write(piece)


def wait() -> None:
    while not (FOLDER / "go").exists():
        time.sleep(0.01)


FAULTS: dict[str, Callable[[], None]] = {
    "kill": kill,
    "stop": stop,
    "kill launcher": kill_launcher,
    "fill": fill,
    "wait": wait,
    "nan": lambda: None,
    "nothing": lambda: None,
}


def meets(call: Callable[..., Any], moment: str, fault: Callable[[], None]) -> Callable[..., Any]:
    """`call`, which meets the fault before it is done for the so-many-th time."""
    calls, number = 0, NUMBERS.get(moment, 1)

    def met(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            (FOLDER / "at.partial").write_text(f"{time.time()} {os.getpid()}")
            (FOLDER / "at.partial").rename(FOLDER / "at")
            fault()
            if moment == "gradient":
                named["weight"] = float("nan")
            elif moment == "weights":
                spoil(arguments[0])
            elif moment == "validated weights":
                spoil(arguments[0]._adapter)
        return call(*arguments, **named)

    return met


def spoil(adapter: Any) -> None:
    weights = adapter.weights()
    adapter.load_weights({**weights, "output_kernel": weights["output_kernel"] * np.float32("nan")})


def place_of(moment: str, framework: str, what: str) -> tuple[Any, str]:
    """What is called at that moment: its owner and its name."""
    adapter = adapter_class(framework)  # type: ignore[arg-type]
    match moment:
        case "reading":
            return loop, "read_texts"
        case "set-up":
            return adapter, "build"
        case "training":
            return adapter, "step"  # its gradients are on their way
        case "gradient" | "weights":
            return adapter, "accumulate"
        case "validation":
            return _Reading, "_read"
        case "validated weights":
            return validations.Validations, "run"
        case "metrics":
            return metrics, "_write_whole"
        case "checkpoint" if what == "fill":
            return writer, "_save"
        case "checkpoint":
            # Rank 0 has written it then, but for its name.
            return (writer, "publish") if launcher.launched_rank() == 0 else (leg.parts, "save")
        case "shards":
            return prepare.ShardWriter, "write_all"
    raise AssertionError(moment)


def main(what: str, rank: str, moment: str, *arguments: str) -> int:
    if launcher.launched_rank() == int(rank):
        framework = arguments[arguments.index("--framework") + 1] if "--framework" in arguments else "torch"
        owner, name = place_of(moment, framework, what)
        setattr(owner, name, meets(getattr(owner, name), moment, FAULTS[what]))
    return commands.main(list(arguments))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
