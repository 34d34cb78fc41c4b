"""Which examples validate, where nobody says it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from hvd_lm.errors import DataError

_KEY = 0x6C6162656C
"""Of the numbers that draw them."""

_Item = TypeVar("_Item")


def training_and_validation(
    items: Sequence[_Item], validating: Sequence[_Item] | None, share: float, noun: str
) -> tuple[Sequence[_Item], Sequence[_Item]]:
    """`items` and those that are `validating`; of None, a `share` of `items` held apart. Raises DataError if no `noun` is left."""
    training, validation = held_apart(items, share) if validating is None else (items, validating)
    if not training:
        raise DataError(f"no {noun} is left to train on: give more, or a smaller --validation-share")
    return training, validation


def held_apart(items: Sequence[_Item], share: float) -> tuple[list[_Item], list[_Item]]:
    """`items` without, and those of, a part of this share, drawn by chance that is the same every time."""
    drawn = np.random.Generator(np.random.Philox(key=_KEY)).permutation(len(items))
    apart = set(drawn[: round(len(items) * share)].tolist())
    kept = [item for place, item in enumerate(items) if place not in apart]
    return kept, [items[place] for place in sorted(apart)]
