"""The golden runs: what every change of the code must leave as it is.

    python tests/golden.py --out curves.json            # all of them, as this checkout trains them
    python tests/golden.py --against curves.json        # the same, compared bit for bit

Two checkouts agree to the bit on one machine. Another processor sums in another order, so that `test_golden.py`, which compares
some of them with assets/golden.json, allows for rounding.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import launcher
import numpy as np
import pools

from hvd_lm.config import FRAMEWORKS

Curves = dict[str, dict[str, list[float]]]
"""Run -> column of metrics.jsonl -> its values."""
COLUMNS = ("loss", "gradient_norm", "validation_loss", "tokens")
ASSET = Path(__file__).parent / "assets" / "golden.json"

SEQUENCES = 8
"""In a micro-batch of all ranks: a run on two ranks sees the tokens of one on one."""
FLAGS = {
    "--vocabulary-size": "300",
    "--embedding-size": "24",
    "--hidden-size": "32",
    "--sequence-length": "8",
    "--backward-passes-per-step": "3",
    "--steps": "12",
    "--learning-rate": "0.01",
    "--validation-share": "0.02",
    "--validation-cut": "tokens",
    "--seed": "11",
    "--threads": "1",
}
"""Of each run, unless it says otherwise."""


@dataclass(frozen=True)
class Golden:
    """A run of `hvd-lm train`, in each framework."""

    name: str
    ranks: int
    flags: Mapping[str, str] = field(default_factory=dict)
    """What differs from FLAGS."""
    switches: tuple[str, ...] = ()
    """Flags without a value."""
    words: int = 40_000
    """Of the text."""
    resumes_at: int | None = None
    """Steps after which the run ends, and is taken up again."""

    def key(self, framework: str) -> str:
        """The name of its curves."""
        return f"{self.name} {self.ranks} {framework}"


GOLDEN = (
    *(Golden("plain", ranks) for ranks in (1, 2, 4)),
    Golden("fp16", 2, {"--compression": "fp16"}),
    *(Golden("dropout", ranks, {"--dropout": "0.3"}) for ranks in (1, 2)),
    *(Golden("tied", ranks, {"--embedding-size": "32"}, ("--tie-embedding",)) for ranks in (1, 2)),
    *(Golden("short-window", ranks, {"--epochs": "3", "--steps": "40"}, words=2_000) for ranks in (1, 2)),
    *(Golden("resumed", ranks, {"--dropout": "0.2"}, resumes_at=5) for ranks in (1, 2)),
    Golden("momentum", 1, {"--optimizer": "sgd", "--momentum": "0.9", "--learning-rate": "0.3"}),
    *(Golden("wide", ranks, {"--hidden-size": "256", "--embedding-size": "96", "--sequence-length": "32"}) for ranks in (1, 2)),
)


def write_text(path: Path, words: int) -> None:
    """A language with something to learn, the same on every machine: each word allows four others after it."""
    generator = np.random.Generator(np.random.PCG64(5))
    chosen = generator.integers(0, 4, words)
    word, lines, line = 0, [], []
    for choice in chosen:
        word = (word * 7 + int(choice) * 31 + 1) % 300
        line.append(f"w{word}")
        if len(line) == 12:
            lines.append(" ".join(line))
            line = []
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def run(golden: Golden, framework: str, folder: Path) -> dict[str, list[float]]:
    """Train it; its columns."""
    text = folder / f"{golden.words}.txt"
    if not text.exists():
        write_text(text, golden.words)
    out = folder / f"{golden.name}-{golden.ranks}-{framework}"
    flags = {
        **FLAGS, "--framework": framework, "--data": str(text), "--out": str(out),
        "--batch-size": str(SEQUENCES // golden.ranks), **golden.flags,
    }  # fmt: skip
    legs = [flags]
    if golden.resumes_at:
        legs = [{**flags, "--steps": str(golden.resumes_at)}, {**flags, "--resume": "auto"}]
    for leg in legs:
        pools.hvd_lm(golden.ranks, "train", "--deterministic", *golden.switches, *chain(*leg.items()))
    rows = launcher.metrics(out)
    return {column: [row[column] for row in rows if column in row] for column in COLUMNS}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="file to write the curves to")
    parser.add_argument("--against", type=Path, help="file of curves to compare with")
    parser.add_argument("--only", default="", help="only runs whose name holds this")
    options = parser.parse_args()
    curves: Curves = {}
    different = 0
    expected: Curves = json.loads(options.against.read_text()) if options.against else {}
    with tempfile.TemporaryDirectory() as folder:
        for framework in FRAMEWORKS:
            for golden in GOLDEN:
                name = golden.key(framework)
                if options.only not in name:
                    continue
                curves[name] = run(golden, framework, Path(folder))
                verdict = ""
                if expected:
                    same = curves[name] == expected[name]
                    different += not same
                    verdict = "the same bits" if same else f"DIFFERENT, by {largest_difference(curves[name], expected[name]):.1e}"
                print(f"{name:<24} {curves[name]['loss'][0]:.6f} -> {curves[name]['loss'][-1]:.6f}  {verdict}", flush=True)
    if options.out:
        options.out.write_text(json.dumps(curves, indent=1) + "\n")
    return 1 if different else 0


def largest_difference(actual: dict[str, list[float]], expected: dict[str, list[float]]) -> float:
    """Relative, over all columns; infinite if one has another length."""
    differences = [0.0]
    for column, values in expected.items():
        if len(values) != len(actual[column]):
            return float("inf")
        differences += [abs(a - b) / max(abs(b), 1e-30) for a, b in zip(actual[column], values, strict=True)]
    return max(differences)


if __name__ == "__main__":
    sys.exit(main())
