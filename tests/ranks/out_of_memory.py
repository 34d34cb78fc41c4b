"""Training in which the last stage of a backward, while gradients travel, finds no memory on a rank (or all); or a bug.

horovodrun -np 2 python out_of_memory.py torch memory 1 OUT
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from troubled import TEXT

from hvd_lm.command_line import commands
from hvd_lm.job import launcher

MODULES = {"torch": "hvd_lm.adapters.pytorch.stages.lookup", "tensorflow": "hvd_lm.adapters.tensorflow.stages.lookup"}
NUMBERS = 1 << 50
FLAGS = "--vocabulary-size 40 --embedding-size 6 --hidden-size 8 --batch-size 2 --sequence-length 8 --steps 100 --threads 1"


def allocating(framework: str, backward: Callable[..., Any]) -> Callable[..., Any]:
    """`backward` that asks for more memory than any machine has, as the framework does."""

    def call(*arguments: Any) -> Any:
        if framework == "torch":
            import torch

            torch.empty(NUMBERS)
            return backward(*arguments)
        import tensorflow as tf

        with tf.control_dependencies([tf.random.uniform([NUMBERS])]):
            return backward(*arguments)

    return call


def failing(*_: Any) -> Any:
    raise ZeroDivisionError("by zero")


def main(framework: str, case: str, rank: str, out: str) -> int:
    if rank in ("all", str(launcher.launched_rank())):
        stage = importlib.import_module(MODULES[framework]).Lookup
        stage.backward = allocating(framework, stage.backward) if case == "memory" else failing
    return commands.main(["train", "--framework", framework, "--data", str(TEXT), "--out", out, *FLAGS.split()])


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    sys.exit(main(*sys.argv[1:]))
