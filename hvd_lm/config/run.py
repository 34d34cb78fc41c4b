"""A run: everything that it is given."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from hvd_lm.compression.limits import require_any_ranks
from hvd_lm.config.communication import CommunicationConfig
from hvd_lm.config.data import DataConfig
from hvd_lm.config.model import ModelConfig
from hvd_lm.config.optimizer import OptimizerConfig
from hvd_lm.config.target_batch import passes_for, require_target_batch
from hvd_lm.config.topology import TopologyConfig
from hvd_lm.errors import require, require_positive
from hvd_lm.paths import at_home, make_paths

Framework = Literal["torch", "tensorflow"]
FRAMEWORKS: tuple[Framework, ...] = ("torch", "tensorflow")


@dataclass(frozen=True)
class RunConfig:
    """Train an LSTM language model, alone or on every rank of a horovodrun job."""

    framework: Framework = "torch"
    """Which framework computes."""
    out: Path = Path("run")
    """Folder for the resolved configuration, metrics, TensorBoard files and checkpoints."""
    steps: int | None = None
    """Optimizer steps to train for."""
    epochs: int | None = None
    """Passes over the text to train for. With --steps too, the shorter one holds; with neither, one pass."""
    seed: int = 1
    """Seed of the initial weights, of dropout and of sampled words."""
    threads: int | None = None
    """Compute threads of a rank. Unless given: the cores of the machine shared by its ranks."""
    validation_every: int | None = None
    """Optimizer steps between validations. Unless given: at the end of each epoch and of the run."""
    patience: int | None = None
    """End the run after so many validations in a row whose loss is not below the lowest before them. None: train to the end."""
    test: bool = True
    """At the end judge the best weights (without validations: the last) by the test split of a prepared folder that has one."""
    sample_every: int | None = None
    """Optimizer steps between texts that the model writes, for people to read; they are in metrics.jsonl, too. None: no texts."""
    sample_prompt: str = ""
    """What these texts go on from."""
    noise_scale_every: int | None = None
    """Optimizer steps between estimates of the gradient noise scale (McCandlish et al. 2018, arXiv:1812.06162), the batch in tokens
    beyond which larger ones help little: in metrics.jsonl, for hvd-lm plan. None: no estimates."""
    max_hours: float | None = None
    """Stop after so many hours, with a checkpoint that --resume auto goes on with, and exit code 5."""
    checkpoint_every: int | None = None
    """Optimizer steps between checkpoints. Unless given: at the end of each epoch and of the run."""
    keep_checkpoints: int = 2
    """How many checkpoints to keep: the newest ones, and the one with the lowest validation loss besides."""
    resume: str | None = None
    """Go on with an earlier run: auto for the newest checkpoint in --out (none there: begin), or the folder of a run or of
    a checkpoint. --steps and --epochs are the totals of the run. Ranks, batch size and framework may change."""
    initial_weights: Path | None = None
    """Begin with the weights of another model, in place of random ones: folder of a run or of a checkpoint. Its sizes and its
    tokenizer must be those of this run."""
    elastic: bool = False
    """Go on when workers come or go, without a restart: under horovodrun --min-np A --max-np B --host-discovery-script SCRIPT."""
    deterministic: bool = False
    """Make every sum repeatable, bit for bit: deterministic kernels, and no fusion unless --fusion-threshold-mb is given."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    communication: CommunicationConfig = field(default_factory=CommunicationConfig)
    topology: TopologyConfig = field(default_factory=TopologyConfig)

    def __post_init__(self) -> None:
        make_paths(self, "out", "initial_weights")
        if self.resume is not None and self.resume.startswith("~"):
            object.__setattr__(self, "resume", str(at_home(Path(self.resume), "--resume")))
        require(self.framework in FRAMEWORKS, f"--framework must be one of {', '.join(FRAMEWORKS)}, not {self.framework}")
        intervals = ("validation_every", "sample_every", "checkpoint_every", "noise_scale_every")
        for name in ("steps", "epochs", "threads", "patience", "keep_checkpoints", *intervals):
            value = getattr(self, name)
            require(value is None or value >= 1, f"--{name.replace('_', '-')} must be at least 1, not {value}")
        require_positive(self, "max_hours")
        require(self.resume != "", "--resume needs auto or a folder")
        require(
            not self.elastic or (self.topology.split is None and self.topology.data_parallel is None),
            "--elastic needs a whole model on every worker, and any number of them: use it without --split, --model-parallel and "
            "--data-parallel",
        )
        require(
            not self.elastic or self.communication.reduction != "adasum",
            "--reduction adasum needs 2, 4, 8, ... ranks: use it without --elastic",
        )
        require(
            not self.elastic or self.communication.plan is None,
            "--plan auto is for a number of ranks that stays: use it without --elastic",
        )
        if self.topology.split is not None or self.elastic:
            require_any_ranks(self.communication)
        require(
            not self.communication.late_gradients or self.optimizer.optimizer != "adagrad",
            "--late-gradients goes with --optimizer adam, adamw, sgd or asgd: adagrad updates the rows of one window",
        )
        require(
            self.optimizer.optimizer != "asgd" or (self.topology.split != "optimizer" and self.communication.reduce_every == 1),
            "--optimizer asgd averages whole weights that all ranks have in common: use it without --split optimizer and "
            "--reduce-every",
        )
        require(
            self.sample_every is None or self.topology.split in (None, "optimizer"),
            f"--sample-every needs a whole model on rank 0: use it without --split {self.topology.split}",
        )
        require(
            self.noise_scale_every is None or (self.communication.sums_exactly and self.topology.split is None),
            "--noise-scale-every compares exact gradients of whole models: use it with --compression none or fp16 and --reduction "
            "sum, and without --reduce-every, --late-gradients, --split and --model-parallel",
        )
        require(
            self.noise_scale_every is None
            or self.communication.backward_passes_per_step > 1
            or self.communication.target_batch is not None,
            "--noise-scale-every compares one micro-batch with a window of several: raise --backward-passes-per-step",
        )
        if self.communication.target_batch is not None:
            require_target_batch(self.communication.target_batch, self.data)
        require(self.seed >= 0, f"--seed must not be negative, not {self.seed}")


def with_vocabulary_size(config: RunConfig, size: int) -> RunConfig:
    """`config` with the vocabulary size that the text has decided."""
    return replace(config, model=replace(config.model, vocabulary_size=size))


def with_passes(config: RunConfig, readers: int) -> RunConfig:
    """`config` with the passes per step that bring `readers` data ranks nearest to its target batch, if it has one."""
    target = config.communication.target_batch
    if target is None:
        return config
    passes = passes_for(target, readers, config.data)
    return replace(config, communication=replace(config.communication, backward_passes_per_step=passes))
