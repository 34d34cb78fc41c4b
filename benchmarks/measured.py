"""``python -m benchmarks.measured FILE COMMAND...``: runs COMMAND and writes its peak memory into FILE-RANK.json.

The same for every peer, and without a change to any of them.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

from hvd_lm.job import launcher

_PR_SET_PDEATHSIG = 1


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> int:
    file, *command = sys.argv[1:]
    with subprocess.Popen(command, preexec_fn=_die_with_parent) as process:
        signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        code = process.wait()
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    rank = int(os.environ.get("RANK", launcher.launched_rank()))
    Path(f"{file}-{rank}.json").write_text(json.dumps({"peak_bytes": peak}), encoding="utf-8")
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
