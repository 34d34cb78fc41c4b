"""Settings that every run has which learns from examples that stand alone, in place of a running text."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from hvd_lm.config import CommunicationConfig, DataConfig, Framework, ModelConfig, OptimizerConfig, RunConfig
from hvd_lm.errors import require
from hvd_lm.paths import make_paths


@dataclass(frozen=True, kw_only=True)
class ExampleRun:
    """What `hvd_lm.train` is told beside model and examples."""

    out: Path = Path("run")
    """Folder of the run, as of hvd-lm train."""
    framework: Framework = "torch"
    """Which framework computes."""
    epochs: int = 5
    """Passes over the examples."""
    batch_size: int = 32
    """Examples in a micro-batch of one rank (B)."""
    seed: int = 1
    """Seed of initial weights and of dropout."""
    threads: int | None = None
    """Compute threads of a rank. Unless given: the cores of the machine shared by its ranks."""
    patience: int | None = None
    """End the run after so many epochs in a row that validate no better than the best before them."""
    max_hours: float | None = None
    """Stop after so many hours, with a checkpoint that --resume auto goes on with, and exit code 5."""
    checkpoint_every: int | None = None
    """Optimizer steps between checkpoints. Unless given: at the end of each epoch."""
    keep_checkpoints: int = 1
    """How many checkpoints to keep: the newest ones, and the one that validates best besides."""
    resume: str | None = None
    """Go on with an earlier run, as of hvd-lm train."""
    deterministic: bool = False
    """Make every sum repeatable, bit for bit."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    communication: CommunicationConfig = field(default_factory=lambda: CommunicationConfig(backward_passes_per_step=1))

    def __post_init__(self) -> None:
        make_paths(self, "out")
        planned = self.communication.plan or self.communication.link
        require(planned is None, "--plan and --link predict micro-batches of one length: train without them")
        require(self.communication.target_batch is None, "--target-batch counts tokens: give --backward-passes-per-step")

    def run_config(self, model: ModelConfig, data: DataConfig, initial_weights: Path | None = None) -> RunConfig:
        """The run that learns from examples; of `data` its paths are told, and its sizes count."""
        return RunConfig(
            framework=self.framework,
            out=self.out,
            epochs=self.epochs,
            seed=self.seed,
            threads=self.threads,
            patience=self.patience,
            max_hours=self.max_hours,
            checkpoint_every=self.checkpoint_every,
            keep_checkpoints=self.keep_checkpoints,
            resume=self.resume,
            initial_weights=initial_weights,
            deterministic=self.deterministic,
            model=model,
            data=data,
            optimizer=self.optimizer,
            communication=self.communication,
        )
