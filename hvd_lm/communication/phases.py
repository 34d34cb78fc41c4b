"""The parts of a run whose steps communicate differently: some ways to communicate have a beginning of another kind."""

from __future__ import annotations

from dataclasses import replace

from hvd_lm.config import CommunicationConfig


def phases(communication: CommunicationConfig) -> tuple[tuple[int, CommunicationConfig], ...]:
    """After how many applied steps each begins, ascending from 0, and what its steps are like all along."""
    start = communication.powersgd_start_steps
    if communication.compression == "powersgd" and start:
        return (0, replace(communication, compression="none")), (start, communication)
    return ((0, communication),)
