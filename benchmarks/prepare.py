"""``python -m benchmarks prepare``: gigabytes of text into token shards; how fast, and in how much memory."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks import launching, links, machine
from benchmarks.launching import Job, python
from benchmarks.links import LOOPBACK

_WORDS = 200_000
_LINE = 24


@dataclass(frozen=True)
class Prepare:
    """Prepare a synthetic text: words drawn by Zipf's law from a large vocabulary."""

    out: Path
    """Folder for prepare.json."""
    gigabytes: float = 2.0
    """Size of the text."""
    tokenizers: tuple[Literal["word", "char", "byte", "bpe"], ...] = ("word",)
    """Which tokenizers."""
    timeout: float = 3600.0
    """Seconds for one job."""

    def run(self) -> int:
        self.out.mkdir(parents=True, exist_ok=True)
        record: dict[str, Any] = {**machine.describe(), "rows": []}
        with links.connect(LOOPBACK, 2) as network, tempfile.TemporaryDirectory(dir=self.out) as folder:
            text = Path(folder) / "text.txt"
            size = write_text(text, int(self.gigabytes * 1e9))
            for kind in self.tokenizers:
                peak = Path(folder) / f"peak-{kind}"
                command = (
                    "bash", "-c", f"TIMEFORMAT=%R; time hvd-lm prepare {text} --out {folder}/{kind} --tokenizer {kind}"
                )  # fmt: skip
                log = self.out / f"prepare-{kind}.log"
                launching.run(
                    Job((*python("measured", peak), *command), "alone", 1, len(os.sched_getaffinity(0))),
                    network,
                    log,
                    timeout=self.timeout,
                )
                seconds = float(log.read_text(encoding="utf-8").split()[-1])
                tokens = sum(
                    split["tokens"] for split in json.loads(Path(folder, kind, "prepared.json").read_text())["splits"].values()
                )
                row = {
                    "tokenizer": kind,
                    "text_bytes": size,
                    "tokens": tokens,
                    "seconds": seconds,
                    "megabytes_per_second": size / 1e6 / seconds,
                    "peak_bytes_of_the_largest_process": json.loads(Path(f"{peak}-0.json").read_text())["peak_bytes"],
                }
                record["rows"].append(row)
                print(json.dumps(row), flush=True)
        (self.out / "prepare.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        return 0


def write_text(path: Path, size: int) -> int:
    """Write at least `size` bytes of words; returns how many."""
    written = 0
    with path.open("w", encoding="utf-8") as file:
        for block in blocks():
            written += file.write(block)
            if written >= size:
                break
    return path.stat().st_size


def blocks() -> Iterator[str]:
    """Lines of words, about a megabyte at a time."""
    generator = np.random.default_rng(0)
    words = np.array(["".join(generator.choice(list("etaoinshrdlu"), 2 + index % 9)) + str(index) for index in range(_WORDS)])
    while True:
        ranks = generator.zipf(1.2, (5000, _LINE)) % _WORDS
        yield "\n".join(" ".join(line) for line in words[ranks]) + "\n"
