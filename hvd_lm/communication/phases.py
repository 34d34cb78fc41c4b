"""The parts of a run whose steps communicate differently: some ways to communicate have a beginning of another kind."""

from __future__ import annotations

import math
from dataclasses import replace

from hvd_lm.compression.selectors import TopK
from hvd_lm.config import CommunicationConfig


def phases(communication: CommunicationConfig) -> tuple[tuple[int, CommunicationConfig], ...]:
    """After how many applied steps each begins, ascending from 0, and what its steps are like all along."""
    if communication.compression == "topk":
        return _of_topk(communication)
    if communication.compression == "powersgd":
        start, begins = communication.powersgd_start_steps, replace(communication, compression="none")
    elif communication.reduce_every > 1:
        start, begins = communication.reduce_start_steps, replace(communication, reduce_every=1)
    else:
        start = 0
    return ((0, begins), (start, communication)) if start else ((0, communication),)


def _of_topk(communication: CommunicationConfig) -> tuple[tuple[int, CommunicationConfig], ...]:
    """One for each share."""
    topk = TopK(communication.topk_share, communication.topk_momentum, communication.topk_start_steps)
    found: list[tuple[int, CommunicationConfig]] = []
    for step in sorted({math.ceil(quarter * topk.start_steps / 4) for quarter in range(5)}):
        its = replace(communication, topk_share=topk.share_at(step))
        if not found or its != found[-1][1]:
            found.append((step, its))
    return tuple(found)
