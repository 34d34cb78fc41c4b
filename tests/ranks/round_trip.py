"""A checkpoint taken up by the ranks of a grid, and written by them again.

horovodrun -np 4 python round_trip.py torch '{"model_parallel": 2}' FROM TO
"""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from common import report

import hvd_lm
from hvd_lm import checkpoint as checkpoints
from hvd_lm.checkpoint import CheckpointWriter
from hvd_lm.config import TopologyConfig
from hvd_lm.training import parts
from hvd_lm.training.snapshot import enter


def main(framework: str, topology: str, source: str, target: str) -> int:
    adapter = hvd_lm.adapter(framework, topology=TopologyConfig(**json.loads(topology)))
    loaded = checkpoints.mapped(Path(source))
    adapter.build(loaded.model, loaded.optimizer)
    step, _ = enter(adapter, loaded if adapter.job.topology.is_writer else None, seed=1)
    held = replace(loaded, weights=adapter.weights(copy=False), optimizer_state=adapter.optimizer_state(copy=False))
    with ExitStack() as stack:
        writer = stack.enter_context(CheckpointWriter(Path(target), keep=1)) if adapter.job.topology.is_writer else None
        parts.save(adapter, held, writer)
    adapter.job.agree()
    return step


if __name__ == "__main__":
    report(main(*sys.argv[1:]))
