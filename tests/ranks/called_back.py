"""Training with a callback that has enough at step 3; what each rank saw, and raised.

horovodrun -np 2 python called_back.py torch OUT
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from common import report

import hvd_lm
from hvd_lm.errors import HvdLmError


def main(framework: str, out: str) -> dict[str, Any]:
    config = hvd_lm.RunConfig(
        framework=framework,  # type: ignore[arg-type]
        out=Path(out),
        steps=8,
        threads=1,
        model=hvd_lm.ModelConfig(vocabulary_size=60, embedding_size=6, hidden_size=8),
        data=hvd_lm.DataConfig(batch_size=2, sequence_length=8),
        communication=hvd_lm.CommunicationConfig(backward_passes_per_step=2),
    )
    steps: list[int] = []

    def note(row: dict[str, Any]) -> None:
        steps.append(row["step"])
        if len(steps) == 3:
            raise ValueError("enough")

    try:
        hvd_lm.train(config, callbacks=[note])
    except HvdLmError as error:
        return {"steps": steps, "kind": type(error).__name__, "message": str(error)}
    return {"steps": steps, "kind": None, "message": ""}


if __name__ == "__main__":
    report(main(*sys.argv[1:]))
