"""``python -m benchmarks compute``: what share of the machine's GEMM rate one-thread training reaches, and memory."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import figures, machine, workload
from benchmarks.compare import Compare
from benchmarks.figures import Outcome, markdown_table
from benchmarks.launching import RunError, python
from benchmarks.workload import Workload

_PEERS = ("ours-torch-alone", "plain_torch", "ours-tensorflow-alone", "plain_tensorflow")


@dataclass(frozen=True)
class Compute:
    """One process of each framework, ours and plain, beside the rate of matrix products and beside the memory it needs."""

    out: Path
    """Folder for compute.json and compute.md, and the record of the comparison."""
    rounds: int = 3
    """How often each peer runs."""
    small: bool = False
    """A small model, for trials of the bench."""
    workload: Workload = field(default_factory=lambda: Workload(batch_size=32, sequence_length=64, accumulation=2, warmup=1))

    def run(self) -> int:
        before = self._gemm()
        code = Compare(self.out, peers=_PEERS, rounds=self.rounds, small=self.small, workload=self.workload).run()
        after = self._gemm()
        record = json.loads((self.out / "record.json").read_text(encoding="utf-8"))
        rates = {f: {shape: max(before[f][shape], after[f][shape]) for shape in before[f]} for f in before}
        result = {**machine.describe(), "gemm_gflops": rates}
        text = table(result, record)
        (self.out / "compute.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
        (self.out / "compute.md").write_text(text, encoding="utf-8")
        print(text)
        return code

    def _gemm(self) -> dict[str, dict[str, float]]:
        work = workload.small(self.workload) if self.small else self.workload
        tokens = work.batch_size * work.sequence_length
        shape = (work.threads, work.hidden_size, work.batch_size, tokens, work.vocabulary_size)
        return {name: json.loads(_output(python("gemm", name, *map(str, shape)))) for name in ("torch", "tensorflow")}


def _output(command: tuple[str, ...]) -> str:
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise RunError(f"{shlex.join(command)} ended with {ended.returncode}:\n{ended.stderr}")
    return ended.stdout


def table(result: dict[str, Any], record: dict[str, Any]) -> str:
    """Shares and memory as Markdown."""
    outcomes = [Outcome(**outcome) for outcome in record["outcomes"]]
    values = {key: value for key, value in record["workload"].items() if key not in ("small", "parameters")}
    work = Workload(**values)
    gemm_rows = [[f, *(f"{rate:.1f}" for rate in rates.values())] for f, rates in result["gemm_gflops"].items()]
    machine_gflops = max(rates["square"] for rates in result["gemm_gflops"].values())
    rows = []
    for peer in _PEERS:
        if runs := figures.of_peer(outcomes, peer):
            gflops = figures.speed(outcomes, peer).median * work.flops_per_token / 1e9
            peak, program = max(max(run.peak_bytes) for run in runs), record["program_bytes"][peer]
            share = gflops / machine_gflops
            memory = [f"{peak / 1e6:,.0f}", f"{program / 1e6:,.0f}", f"{(peak - program) / work.needed_bytes:.2f}"]
            rows.append([peer, f"{figures.speed(outcomes, peer):,.0f}", f"{gflops:.1f}", f"{share:.2f}", *memory])
    header = ["peer", "tokens/s", "GFLOPS", "share of the best square GEMM", "peak MB", "program MB", "model / needed"]
    shapes = list(next(iter(result["gemm_gflops"].values())))
    return "\n".join(
        [
            f"One process, {work.threads} thread(s), B={work.batch_size}, T={work.sequence_length}; "
            f"{work.flops_per_token / 1e6:.1f} MFLOP a token in matrix products\n",
            f"{machine.one_line(result)}; commit {result['commit']}\n",
            "GFLOPS of matrix products alone:\n",
            markdown_table(["", *shapes], gemm_rows),
            markdown_table(header, rows),
            "Program: the peak with a small model; what is above it is the model's. "
            f"Needed: weights, gradients and Adam {work.state_bytes / 1e6:,.0f} MB, "
            f"activations of a micro-batch {work.activation_bytes / 1e6:,.0f} MB.\n",
        ]
    )
