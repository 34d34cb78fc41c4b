"""What goes wrong on the last rank alone, while the others wait for it or are done.

horovodrun -np 2 python misbehaving.py torch raises
"""

from __future__ import annotations

import os
import sys
import time

from common import report

from hvd_lm.job import launcher


def main(_: str, how: str) -> int:
    last = launcher.launched_rank() == launcher.launched_size() - 1
    print(f"rank {launcher.launched_rank()} begins", flush=True)
    if how == "raises" and last:
        raise ValueError("nothing works here")
    if how == "ends" and last:
        os._exit(7)
    if how == "hangs" and last:
        time.sleep(1000)
    return os.getpid()


if __name__ == "__main__":
    report(main(*sys.argv[1:]))
