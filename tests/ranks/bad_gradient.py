"""A run in which rank 1's gradient is not finite once two updates have been made, though its loss is; and how gradients travel.

horovodrun -np 2 python bad_gradient.py torch FOLDER 6 '{"reduce_every": 9}'
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

from common import report

import hvd_lm
from hvd_lm.adapters.base import Adapter
from hvd_lm.errors import TrainingError
from hvd_lm.training import local_steps

UPDATES_BEFORE = 2


def main(framework: str, out: str, steps: str, communication: str, told: str = "1") -> str:
    """Ranks tell each other of so many steps of their own once."""
    with patch.object(local_steps, "told_every", lambda _, __, most, ___: min(most, int(told))):
        return trained(framework, out, steps, communication)


def trained(framework: str, out: str, steps: str, communication: str) -> str:
    kind = hvd_lm.adapters.adapter_class(framework)
    accumulate = kind.accumulate

    def overflowing(adapter: Adapter, *arguments: Any, weight: float, **rest: Any) -> Any:
        is_bad = adapter.job.topology.rank == 1 and adapter.applied_steps == UPDATES_BEFORE
        return accumulate(adapter, *arguments, weight=float("inf") if is_bad else weight, **rest)

    config = hvd_lm.RunConfig(
        framework=framework,  # type: ignore[arg-type]
        out=Path(out),
        steps=int(steps),
        model=hvd_lm.ModelConfig(hidden_size=16, embedding_size=8),
        communication=hvd_lm.CommunicationConfig(backward_passes_per_step=1, **json.loads(communication)),
    )
    kind.accumulate = overflowing  # type: ignore[method-assign,assignment]
    try:
        hvd_lm.train(config)
    except TrainingError as error:
        return str(error)
    finally:
        kind.accumulate = accumulate  # type: ignore[method-assign]
    return "nothing was raised"


if __name__ == "__main__":
    report(main(*sys.argv[1:]))
