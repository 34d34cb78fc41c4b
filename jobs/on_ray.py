#!/usr/bin/env python
"""The reference model on the hosts of a Ray cluster, by horovod.ray over Gloo.

    python jobs/on_ray.py TEXT...                                   2 ranks of PyTorch, on a Ray that is started here
    RAY_ADDRESS=auto RANKS=8 GPUS=1 python jobs/on_ray.py TEXT...   a rank for each GPU of the cluster that this host is in
    FRAMEWORK=tensorflow OUT=/shared/runs/ray python jobs/on_ray.py TEXT... --steps 1000

Needs `pip install ray` beside hvd_lm, on every host at the same version, and texts and OUT at paths that are the same on all hosts.
Change: RANKS, CPUS for each of them, GPUS (1, or 0 for none), and the settings in reference.yaml.
Watch it: what rank 0 says comes here; `ray status`; hvd-lm report OUT. Stop it: --max-hours; Ctrl-C ends it at once.
It goes on: the same command again, from the last checkpoint; OUT must be where rank 0 may be next time, too.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import ray
from horovod.ray import RayExecutor

REFERENCE = Path(__file__).with_name("reference.yaml").resolve()


def train(flags: list[str]) -> int:
    """One rank: `hvd-lm train`, whose errors are raised here."""
    from hvd_lm.command_line.commands import run

    return run(["train", *flags])


def main(texts_and_flags: list[str]) -> int:
    """Start the ranks and let them train; the exit code of `hvd-lm train`."""
    framework, out = os.environ.get("FRAMEWORK", "torch"), Path(os.environ.get("OUT", "runs/ray")).resolve()
    flags = ["--config", str(REFERENCE), "--framework", framework, "--out", str(out), "--resume", "auto", "--data"]
    # Ranks begin in a folder of Ray's.
    here = [str(Path(word).resolve()) if Path(word).exists() else word for word in texts_and_flags]
    ray.init()
    executor = RayExecutor(
        RayExecutor.create_settings(timeout_s=120),
        num_workers=int(os.environ.get("RANKS", "2")),
        cpus_per_worker=int(os.environ.get("CPUS", "1")),
        use_gpu=os.environ.get("GPUS", "0") != "0",
    )
    try:
        executor.start()
        return max(executor.run(train, args=[[*flags, *here]]))
    except ray.exceptions.RayTaskError as error:
        print(f"{type(error.cause).__name__}: {error.cause}", file=sys.stderr)
        return getattr(error.cause, "exit_code", 1)
    finally:
        executor.shutdown()


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(f"usage: [RANKS=2] [FRAMEWORK=torch] [OUT=runs/ray] {sys.argv[0]} TEXT...")
    sys.exit(main(sys.argv[1:]))
