"""Two runs in one job of four ranks: a pipeline, and data parallelism; then one that crosses them.

horovodrun -np 4 --mpi python two_runs.py torch FOLDER
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import report
from mpi4py import MPI

import hvd_lm


def main(framework: Any, folder: str) -> dict[str, Any]:
    half = MPI.COMM_WORLD.Get_rank() // 2
    is_pipeline = half == 0
    config = hvd_lm.RunConfig(
        framework=framework,
        out=Path(folder) / ("layers" if is_pipeline else "data"),
        steps=3,
        model=hvd_lm.ModelConfig(vocabulary_size=1000, embedding_size=24, hidden_size=32),
        data=hvd_lm.DataConfig(batch_size=4 if is_pipeline else 2, sequence_length=16),
        topology=hvd_lm.TopologyConfig(model_parallel=2, split="layers") if is_pipeline else hvd_lm.TopologyConfig(),
        communication=hvd_lm.CommunicationConfig(backward_passes_per_step=2),
    )
    parity = MPI.COMM_WORLD.Get_rank() % 2
    own, other = MPI.COMM_WORLD.Split(half), MPI.COMM_WORLD.Split(parity)
    steps = hvd_lm.train(config, comm=own).steps
    try:
        hvd_lm.train(replace(config, out=Path(folder) / f"other {parity}"), comm=other)
        said = "trained"
    except hvd_lm.ConfigError as error:
        said = str(error)
    return {"steps": steps, "said": said}


if __name__ == "__main__":
    report(main(*sys.argv[1:]))
