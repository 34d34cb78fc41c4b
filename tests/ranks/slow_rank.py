"""A run whose last rank is slow in its window: the metrics tell that the others have waited for it.

horovodrun -np 2 python slow_rank.py torch FOLDER 0.3
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from common import report

import hvd_lm
from hvd_lm.adapters.base import Adapter


def main(framework: str, out: str, seconds: str) -> None:
    kind = hvd_lm.adapters.adapter_class(framework)
    accumulate = kind.accumulate

    def slow(adapter: Adapter, *arguments: Any, **rest: Any) -> Any:
        if adapter.job.topology.rank == adapter.job.topology.size - 1:
            time.sleep(float(seconds))
        return accumulate(adapter, *arguments, **rest)

    config = hvd_lm.RunConfig(
        framework=framework,  # type: ignore[arg-type]
        out=Path(out),
        steps=5,
        deterministic=True,
        model=hvd_lm.ModelConfig(hidden_size=16, embedding_size=8),
        communication=hvd_lm.CommunicationConfig(backward_passes_per_step=1),
    )
    kind.accumulate = slow  # type: ignore[method-assign,assignment]
    try:
        hvd_lm.train(config)
    finally:
        kind.accumulate = accumulate  # type: ignore[method-assign]


if __name__ == "__main__":
    report(main(*sys.argv[1:]))
