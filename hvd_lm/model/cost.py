"""What parts of a model cost, in numbers that no framework decides."""

from __future__ import annotations

LOGITS_TOGETHER = 1 << 26
"""Exponentials that a rank keeps while it waits for what the others know of the same tokens (256 MiB)."""


def tokens_together(words: int, ranks: int) -> int:
    """Tokens of a rank that it judges with the others at a time, where each of `ranks` holds up to `words` words."""
    return max(1, LOGITS_TOGETHER // (words * ranks))
