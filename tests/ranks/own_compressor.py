"""Trains with the compressor that docs/communication.md shows.

horovodrun -np 2 python own_compressor.py torch FOLDER
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from common import report

import hvd_lm

PAGE = Path(__file__).parents[2] / "docs" / "communication.md"


def main(framework: Any, out: str) -> float:
    block = re.search(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert block
    shown: dict[str, Any] = {"__name__": "shown"}
    exec(block[1], shown)
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
    return hvd_lm.train(config, compressor=shown["SignSGD"]()).loss


if __name__ == "__main__":
    report(main(*sys.argv[1:]))
