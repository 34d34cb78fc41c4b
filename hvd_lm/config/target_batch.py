"""How many tokens an optimizer step should have, whatever the number of ranks."""

from __future__ import annotations

from hvd_lm.config.data import DataConfig
from hvd_lm.errors import require


def require_target_batch(target_batch: int, data: DataConfig) -> None:
    """Raises ConfigError if a micro-batch of one rank is more."""
    micro_batch = data.batch_size * data.sequence_length
    require(
        target_batch >= micro_batch,
        f"--target-batch {target_batch} is below one micro-batch of {data.batch_size} x {data.sequence_length} = "
        f"{micro_batch} tokens: ask for more, or for a smaller --batch-size or --sequence-length",
    )


def passes_for(target_batch: int, readers: int, data: DataConfig) -> int:
    """Micro-batches a step, at least one, that bring the tokens of `readers` data ranks nearest to `target_batch`."""
    return max(1, round(target_batch / (readers * data.batch_size * data.sequence_length)))
