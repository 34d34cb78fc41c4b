"""``hvd-lm evaluate``: the loss of a checkpoint on a text, read as it is, learning on, or with a cache."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from hvd_lm import adapters
from hvd_lm import checkpoint as checkpoints
from hvd_lm.adapters.ending import ending_together
from hvd_lm.checkpoint import Checkpoint
from hvd_lm.config import Framework, TopologyConfig
from hvd_lm.data.shards import Split
from hvd_lm.data.streams import Tokens
from hvd_lm.data.texts import identify, read_tokens
from hvd_lm.errors import ConfigError, DataError, require
from hvd_lm.evaluation.cache import CacheConfig, evaluate_with_cache
from hvd_lm.evaluation.dynamic import DynamicConfig, evaluate_dynamically
from hvd_lm.evaluation.exact_loss import evaluation_streams, exact_loss
from hvd_lm.evaluation.figures import Evaluation
from hvd_lm.job.agreement import settings
from hvd_lm.paths import make_paths

OF_A_RANK = ("checkpoint", "data", "threads")
"""Settings that may differ between ranks; model and text may not."""


@dataclass(frozen=True)
class EvaluateConfig:
    """Measure the perplexity of a checkpoint on a text, alone or on every rank of a horovodrun job."""

    checkpoint: Path
    """Folder of a training run (its newest checkpoint), or of one checkpoint."""
    data: tuple[Path, ...] = ()
    """UTF-8 texts, one after the other, or a folder that hvd-lm prepare made. None: the embedded corpus."""
    split: Split | None = None
    """Which split of a prepared folder. Unless given: test."""
    framework: Framework = "torch"
    """Which framework computes; any can read any checkpoint."""
    batch_size: int = 8
    """Streams of a rank that are read side by side. It changes the speed, not the result."""
    sequence_length: int = 64
    """Tokens of a stream that are computed at once. It changes the speed, not the result."""
    threads: int | None = None
    """Compute threads of a rank. Unless given: the cores of the machine shared by its ranks."""
    model_parallel: int = 1
    """Ranks that hold one copy of the model together, each a part of the vocabulary: for a model that fits no single rank."""
    dynamic: DynamicConfig = field(default_factory=DynamicConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)

    def __post_init__(self) -> None:
        make_paths(self, "checkpoint", "data")
        for name in ("batch_size", "sequence_length", "threads", "model_parallel"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"--{name.replace('_', '-')} must be at least 1, not {value}")
        require(
            self.dynamic.dynamic == "none" or not self.cache.cache_size,
            "--dynamic and --cache-size change the prediction in two ways: use one of them",
        )


def evaluate(
    checkpoint: Path | str,
    data: Path | str | Sequence[Path | str] = (),
    *,
    split: Split | None = None,
    framework: Framework = "torch",
    batch_size: int = 8,
    sequence_length: int = 64,
    threads: int | None = None,
    model_parallel: int = 1,
    dynamic: DynamicConfig | None = None,
    cache: CacheConfig | None = None,
) -> Evaluation:
    """Perplexity of `checkpoint` on a text (see EvaluateConfig for the settings). Collective.

    Raises CheckpointError, DataError, ConfigError, FrameworkError or LostWorkerError, each with what to do.
    """
    return run(
        EvaluateConfig(
            cast(Path, checkpoint), cast(tuple[Path, ...], data), split, framework, batch_size, sequence_length, threads,
            model_parallel, dynamic or DynamicConfig(), cache or CacheConfig(),
        )
    )  # fmt: skip


def run(config: EvaluateConfig) -> Evaluation:
    """`evaluate`, with its settings as one config. Collective."""
    # Only these moments are read: the root mean squares of gradients.
    load = checkpoints.load if config.dynamic.dynamic == "rms" else checkpoints.load_model
    if config.model_parallel > 1:
        load = checkpoints.mapped  # no rank has room for all of it
    loaded = checkpoints.language_model(load(config.checkpoint), config.checkpoint)
    tokens, counts = read_tokens(config.data, loaded.tokenizer, config.split)
    if not len(tokens):
        raise DataError("the text holds no token")
    topology = TopologyConfig(model_parallel=config.model_parallel)
    adapter = adapters.adapter(config.framework, topology=topology, threads=config.threads)
    job, first_input = adapter.job, loaded.tokenizer.end_of_line_id
    with ending_together(job):
        if job.topology.size > 1:
            job.agree({**_shared(loaded, tokens), **settings(config, without=OF_A_RANK)})
        in_one_stream = config.dynamic.dynamic != "none" or config.cache.cache_size
        if in_one_stream and job.topology.size > 1:
            raise ConfigError("--dynamic and --cache-size read the text in one stream: run them on one rank")
        if config.dynamic.dynamic != "none":
            total = evaluate_dynamically(adapter, loaded, tokens, first_input, config.dynamic)
            return Evaluation(total / len(tokens), len(tokens), counts)
        with job.trouble.noted():
            adapter.build(loaded.model)
            adapter.load_weights(loaded.weights)
        job.agree()
        if config.cache.cache_size:
            total = evaluate_with_cache(adapter, tokens, first_input, config.cache, config.sequence_length)
        else:
            total = exact_loss(adapter, evaluation_streams(adapter, tokens, first_input, config.batch_size, config.sequence_length))
            job.agree()
        return Evaluation(total / len(tokens), len(tokens), counts)


def _shared(checkpoint: Checkpoint, tokens: Tokens) -> dict[str, str]:
    """What all ranks must have read alike."""
    text = hashlib.sha256()
    identify(tokens, text)
    return {"read another text": f"{len(tokens)} tokens: {text.hexdigest()}", "have another model": model_digest(checkpoint)}


def model_digest(checkpoint: Checkpoint) -> str:
    """Tells weights and tokenizer from others."""
    hashed = hashlib.sha256(checkpoint.tokenizer.to_json().encode())
    for array in checkpoint.weights.values():
        hashed.update(array.ravel().data)
    return hashed.hexdigest()
