"""``hvd-lm train``, noting what it reads: a line for each step that this process tries, in FOLDER/<pid>.jsonl.

horovodrun -np 2 --min-np 1 ... python reads.py FOLDER --elastic ...
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from hvd_lm.command_line.commands import main
from hvd_lm.data.sources import Window
from hvd_lm.data.streams import Streams
from hvd_lm.training.leg import Leg
from hvd_lm.training.metrics import Row

_make_step = Leg._window


def note_in(folder: Path) -> None:
    """From here on every try of a step is noted: the leg that makes it, and the targets that this process reads for it."""
    file = (folder / f"{os.getpid()}.jsonl").open("w")
    legs: dict[Leg, float] = {}

    def step(leg: Leg, window: Window) -> Row:
        if leg not in legs:
            legs[leg] = max(leg.job.tell(time.time()))
        source = leg._cursor.source
        assert isinstance(source, Streams)
        length = source.sequence_length
        first, count = window.start * length, (window.stop - window.start) * length
        read = [segment for stream in source.stream_ids for segment in source._read(stream, first, count)]
        note = {"step": leg.step + 1, "leg": legs[leg], "epoch": leg._cursor.epoch, "read": read}
        # Before the step: one that another worker has made, and passed on, counts.
        print(json.dumps(note), file=file, flush=True)
        return _make_step(leg, window)

    Leg._window = step  # type: ignore[method-assign]


if __name__ == "__main__":
    note_in(Path(sys.argv[1]))
    sys.exit(main(["train", *sys.argv[2:]]))
