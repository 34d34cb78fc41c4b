"""Trains with the compressor, or the selector, that docs/communication.md shows.

horovodrun -np 2 python own_compressor.py torch SignSGD FOLDER
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from common import report

import hvd_lm

PAGE = Path(__file__).parents[2] / "docs" / "communication.md"


def main(framework: Any, name: str, out: str) -> float:
    shown: dict[str, Any] = {"__name__": "shown"}
    for block in re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
        exec(block, shown)
    config = hvd_lm.RunConfig(
        framework=framework,
        out=Path(out),
        steps=40,
        threads=1,
        model=hvd_lm.ModelConfig(vocabulary_size=1000, embedding_size=24, hidden_size=32),
        data=hvd_lm.DataConfig(batch_size=4, sequence_length=16),
        optimizer=hvd_lm.OptimizerConfig(learning_rate=0.01),
        communication=hvd_lm.CommunicationConfig(backward_passes_per_step=2),
    )
    return hvd_lm.train(config, compressor=shown[name]()).loss


if __name__ == "__main__":
    report(main(*sys.argv[1:]))
