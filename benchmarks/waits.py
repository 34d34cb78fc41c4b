"""``python -m benchmarks.waits FOLDER ...``: hvd-lm in PyTorch as ever; FOLDER/waits-RANK.json tells how long each step waited.

That is the time in which this rank's training thread had nothing left to do but to wait for Horovod.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import horovod.torch as hvd

from hvd_lm.adapters.base import StepResult
from hvd_lm.adapters.pytorch.adapter import PyTorchAdapter
from hvd_lm.command_line import commands
from hvd_lm.job import launcher


def main() -> int:
    folder = Path(sys.argv.pop(1))
    waits: list[float] = []
    synchronize, step = hvd.synchronize, PyTorchAdapter.step

    def timed(handle: int) -> Any:
        began = time.perf_counter()
        try:
            return synchronize(handle)
        finally:
            if waits:
                waits[-1] += time.perf_counter() - began

    def noted(adapter: PyTorchAdapter, **settings: Any) -> StepResult:
        waits.append(0.0)
        return step(adapter, **settings)

    hvd.synchronize = timed
    PyTorchAdapter.step = noted  # type: ignore[method-assign]
    code = commands.main()
    (folder / f"waits-{launcher.launched_rank()}.json").write_text(json.dumps(waits), encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main())
