"""What a run says of its model before it begins."""

from __future__ import annotations

import math

from hvd_lm.config import CommunicationConfig, DataConfig, ModelConfig

_CELL_NAMES = {"lstm": "LSTM", "mlstm": "multiplicative LSTM"}


def described(model: ModelConfig) -> str:
    """Its sizes, in a line."""
    units = ", ".join(map(str, model.units if len(set(model.units)) > 1 else model.units[:1]))
    projected = f", projected to {model.projection_size}" if model.projection_size else ""
    return (
        f"vocabulary {model.vocabulary_size}, embedding {model.embedding_size}, {len(model.units)} "
        f"{_CELL_NAMES[model.cell]} layer(s) of {units}{projected}"
    )


def a_step(communication: CommunicationConfig, data: DataConfig, readers: int, *, of_examples: bool) -> str:
    """What an optimizer step of `readers` data ranks has; it is `of_examples` of any length, or else of tokens."""
    if of_examples:
        return f"{communication.backward_passes_per_step} x {data.batch_size} examples per rank"
    sizes = (communication.backward_passes_per_step, data.batch_size, data.sequence_length)
    tokens, target = readers * math.prod(sizes), communication.target_batch
    missed = "" if target in (None, tokens) else f", {tokens:,} of all where --target-batch asks for {target:,}"
    random = ", about," if data.random_lengths else ""
    return f"{' x '.join(map(str, sizes))} tokens{random} per rank{missed}"


def nothing_left(step: int, total_steps: int, ended_early: bool) -> str:
    """A line more for a run that has ended already, and how it goes on; empty for the others."""
    if step >= total_steps:
        return f"\nthe run has its {total_steps} steps already: raise --steps or --epochs to go on"
    return "\nthe run has ended, for want of a lower validation loss: raise --patience to go on" if ended_early else ""
