"""Which examples validate, where nobody says it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

_KEY = 0x6C6162656C
"""Of the numbers that draw them."""

_Item = TypeVar("_Item")


def held_apart(items: Sequence[_Item], share: float) -> tuple[list[_Item], list[_Item]]:
    """`items` without, and those of, a part of this share, drawn by chance that is the same every time."""
    drawn = np.random.Generator(np.random.Philox(key=_KEY)).permutation(len(items))
    apart = set(drawn[: round(len(items) * share)].tolist())
    kept = [item for place, item in enumerate(items) if place not in apart]
    return kept, [items[place] for place in sorted(apart)]
