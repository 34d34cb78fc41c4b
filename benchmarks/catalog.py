"""Every peer, and ours in the same form: how each is started, and what its losses must equal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks.launching import Job, Launcher, python
from benchmarks.workload import Workload
from hvd_lm.config import Split

Maths = Literal["exact", "keras", "fp16", "powersgd", "topk", "local", "late"]
"""exact: float32 sums, the loss curve of ours. keras: the same but for Adam's epsilon, which Keras adds before the bias
correction. fp16: gradients are rounded on the wire. powersgd, topk, local, late: other algorithms, near the same curve."""


@dataclass(frozen=True)
class Peer:
    """One line of the table."""

    name: str
    summary: str
    launcher: Launcher
    command: Callable[[Path, Path, Workload], tuple[str, ...]]
    """From the folder of the work, the folder for results, and the work."""
    maths: Maths = "exact"
    servers: int = 0
    is_ours: bool = False

    def size(self, workload: Workload) -> int:
        """Ranks that share one model."""
        return 1 if self.launcher in ("alone", "copies") else workload.ranks

    def job(self, work: Path, results: Path, workload: Workload) -> Job:
        measured = python("measured", results / "memory")
        ranks = 1 if self.launcher == "alone" else workload.ranks
        return Job((*measured, *self.command(work, results, workload)), self.launcher, ranks, workload.threads, self.servers)


def _script(name: str, summary: str, *arguments: str, launcher: Launcher = "processes", maths: Maths = "exact") -> Peer:
    module = f"peers.{name.split('-')[0]}"
    servers = 1 if module == "peers.parameter_server" else 0
    return Peer(name, summary, launcher, lambda work, *_: python(module, work, *arguments), maths, servers)


def _ours(
    framework: str,
    launcher: Launcher,
    *,
    fp16: bool = False,
    powersgd: int | None = None,
    topk: float | None = None,
    reduce_every: int = 1,
    late: bool = False,
    split: Split | None = None,
) -> Peer:
    """`powersgd`: the rank of the approximation. `topk`: the share that is sent. `reduce_every`: steps between two means of the
    weights. `late`: gradients one step late. The beginning, before the clock counts, is exact where it can be."""

    def command(work: Path, results: Path, workload: Workload) -> tuple[str, ...]:
        out = results / ("run-{rank}" if launcher == "copies" else "run-0")
        flags = {
            "framework": framework,
            "out": out,
            "data": work / "text.txt",
            "validation-share": 0,
            "steps": workload.warmup + workload.windows,
            "seed": workload.seed,
            "threads": workload.threads,
            "vocabulary-size": workload.vocabulary_size,
            "embedding-size": workload.embedding_size,
            "hidden-size": workload.hidden_size,
            "layers": workload.layers,
            # A pipeline reads one text: the sequences of all.
            "batch-size": workload.batch_size * (workload.ranks if split == "layers" else 1),
            "sequence-length": workload.sequence_length,
            "backward-passes-per-step": workload.accumulation,
            "learning-rate": workload.learning_rate,
            "clip": None,
            "compression": "fp16" if fp16 else "none",
        }
        if powersgd:
            flags |= {"compression": "powersgd", "powersgd-rank": powersgd, "powersgd-start-steps": workload.warmup}
        if topk:
            flags |= {"compression": "topk", "topk-share": topk, "topk-start-steps": 0}
        if reduce_every > 1:
            flags |= {"reduce-every": reduce_every, "reduce-start-steps": workload.warmup}
        if late:
            flags |= {"late-gradients": True}
        if split:
            flags |= {"split": split, "model-parallel": 1 if split == "optimizer" else workload.ranks}
        words = (word for name, value in flags.items() for word in (f"--{name}", *([] if value is True else [str(value)])))
        return ("hvd-lm", "train", *words)

    maths: Maths = "exact"
    number_format = compressed = ""
    if late:
        maths, number_format, compressed = "late", ", gradients one step late", "-late"
    elif fp16:
        maths, number_format, compressed = "fp16", " fp16", "-fp16"
    elif powersgd:
        maths, number_format, compressed = "powersgd", f", PowerSGD of rank {powersgd}", f"-powersgd-{powersgd}"
    elif topk:
        maths, number_format, compressed = "topk", f", top-k with a share of {topk}", f"-topk-{topk}"
    elif reduce_every > 1:
        maths, compressed = "local", f"-local-{reduce_every}"
        number_format = f", the mean of the weights every {reduce_every} steps"
    name = f"ours-{framework}-{launcher}{f'-{split}' if split else ''}{compressed}"
    where = {"alone": "one process", "copies": "single processes side by side, no reduction"}.get(launcher, f"over {launcher}")
    divided = f", --split {split}" if split else ""
    summary = f"hvd-lm train, {framework}, {where}{divided}{number_format}"
    return Peer(name, summary, launcher, command, maths, is_ours=True)


PEERS: tuple[Peer, ...] = (
    _ours("torch", "gloo"),
    _ours("torch", "gloo", fp16=True),
    _ours("torch", "mpi"),
    _ours("torch", "mpi", fp16=True),
    _ours("tensorflow", "gloo"),
    _ours("tensorflow", "gloo", fp16=True),
    _ours("tensorflow", "mpi"),
    _ours("tensorflow", "mpi", fp16=True),
    *(_ours(framework, "gloo", powersgd=rank) for framework in ("torch", "tensorflow") for rank in (1, 2, 4)),
    *(_ours(framework, "mpi", powersgd=4) for framework in ("torch", "tensorflow")),
    *(_ours(framework, "gloo", topk=0.001) for framework in ("torch", "tensorflow")),
    *(_ours(framework, "gloo", reduce_every=8) for framework in ("torch", "tensorflow")),
    *(_ours(framework, "gloo", late=True) for framework in ("torch", "tensorflow")),
    _ours("torch", "gloo", split="vocabulary"),
    _ours("torch", "gloo", split="vocabulary", fp16=True),
    _ours("tensorflow", "gloo", split="vocabulary"),
    _ours("tensorflow", "gloo", split="vocabulary", fp16=True),
    _ours("torch", "gloo", split="layers"),
    _ours("tensorflow", "gloo", split="layers"),
    _ours("torch", "gloo", split="optimizer"),
    _ours("tensorflow", "gloo", split="optimizer"),
    _script("tutorial", "DDP, every backward reduces"),
    _script("ddp_no_sync", "DDP, no_sync"),
    _script("ddp_no_sync-fp16", "DDP, no_sync, fp16_compress_hook", "--fp16", maths="fp16"),
    *(
        _script(f"ddp_no_sync-powersgd-{rank}", "DDP, no_sync, powerSGD_hook", "--powersgd", str(rank), maths="powersgd")
        for rank in (1, 2, 4)
    ),
    _script("ddp_no_sync-batched-4", "DDP, no_sync, batched_powerSGD_hook", "--powersgd", "4", "--batched", maths="powersgd"),
    _script("post_local_sgd-8", "DDP, no_sync, PostLocalSGDOptimizer, the mean of the weights every 8 steps", "8", maths="local"),
    _script("zero1", "DDP, no_sync, ZeroRedundancyOptimizer"),
    _script("tensor_parallel", "torch.distributed.tensor.parallel: rows of embedding and output divided"),
    _script("fsdp", "FSDP: every parameter divided, gathered where it is used"),
    _script("parameter_server", "PyTorch RPC parameter server"),
    _script("multiworker", "tf.distribute.MultiWorkerMirroredStrategy, Keras", maths="keras"),
    _script("horovod_example-gloo", "Horovod's DistributedOptimizer as documented, over gloo", launcher="gloo"),
    _script("horovod_example-gloo-fp16", "the same with its Compression.fp16", "--fp16", launcher="gloo", maths="fp16"),
    _script("horovod_example-mpi", "Horovod's DistributedOptimizer as documented, over mpi", launcher="mpi"),
    _script("horovod_example-mpi-fp16", "the same with its Compression.fp16", "--fp16", launcher="mpi", maths="fp16"),
    _script("horovod_tape-gloo", "Horovod's DistributedGradientTape as documented, over gloo", launcher="gloo", maths="keras"),
    _script("horovod_tape-mpi", "Horovod's DistributedGradientTape as documented, over mpi", launcher="mpi", maths="keras"),
    _ours("torch", "alone"),
    _ours("tensorflow", "alone"),
    _script("plain_torch", "plain PyTorch loop, one process", launcher="alone"),
    _script("plain_tensorflow", "plain TensorFlow loop with Keras layers, one process", launcher="alone", maths="keras"),
    _ours("torch", "copies"),
    _ours("tensorflow", "copies"),
)
