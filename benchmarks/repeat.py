"""Times what the ranks of a job do together."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path


def timed(actions: Mapping[str, Callable[[], object]], repeats: int, rank: int, barrier: Callable[[], object]) -> None:
    """Run each action once untimed and `repeats` times, in turns; the seconds of this rank go to BENCH_RESULTS."""
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for repeat in range(repeats + 1):
        for name, action in actions.items():
            barrier()
            began = time.perf_counter()
            action()
            if repeat:
                seconds[name].append(time.perf_counter() - began)
    Path(os.environ["BENCH_RESULTS"], f"rank-{rank}.json").write_text(json.dumps(seconds), encoding="utf-8")
