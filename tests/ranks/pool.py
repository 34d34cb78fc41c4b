"""A rank that is started once and runs bodies one after the other, as `pools.py` in the test process orders them.

horovodrun -np 2 python pool.py FOLDER torch

In FOLDER it finds the socket from which orders come, and leaves what it prints. It ends when the other end of the socket is gone.
"""

from __future__ import annotations

import faulthandler
import gc
import importlib
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Client
from pathlib import Path

from hvd_lm.adapters import adapter_class, job
from hvd_lm.config import TopologyConfig
from hvd_lm.job import launcher


def main(folder: Path, framework: str) -> None:
    # TensorFlow fixes its threads with the first operation of a process: whichever body comes first, a rank has one.
    job.default_threads = lambda: 1
    # A rank that hangs is asked where.
    faulthandler.register(signal.SIGUSR1)
    rank = launcher.launched_rank()
    size = launcher.launched_size()
    if size > 2:
        # A process keeps the groups that it starts with: these serve plain jobs, too.
        grid = TopologyConfig(model_parallel=2 if size == 4 else size, split="layers")
        adapter_class(framework).job_class(topology=grid)
    with Client(str(folder / "orders")) as orders:
        orders.send((rank, os.getpid()))
        while True:
            try:
                name, arguments, place = orders.recv()
            except EOFError:
                return
            os.chdir(place)
            with printing_to(folder / f"{rank}.txt"):
                orders.send(run(name, arguments))
            forget()


def run(name: str, arguments: list[str]) -> tuple[bool, object]:
    """Whether the body came to its end, and what it returned; its traceback otherwise is in what it printed."""
    try:
        return True, importlib.import_module(name).main(*arguments)
    except BaseException:
        traceback.print_exc()
        return False, None
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


@contextmanager
def printing_to(path: Path) -> Iterator[None]:
    """Standard output and error go to `path`, those of C++ too."""
    saved = [os.dup(stream) for stream in (1, 2)]
    printed = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    try:
        for stream in (1, 2):
            os.dup2(printed, stream)
        yield
    finally:
        for stream, before in zip((1, 2), saved, strict=True):
            os.dup2(before, stream)
            os.close(before)
        os.close(printed)


def forget() -> None:
    """Let go of what --deterministic changes for the whole process, and of models that are used no more."""
    if torch := sys.modules.get("torch"):
        torch.use_deterministic_algorithms(False)
    if "tensorflow" in sys.modules:
        from tensorflow.python.framework import config

        config.disable_op_determinism()
    gc.collect()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
