"""``--split optimizer``, predicted: gradients travel as parts to those who update them, and new rows to all.

Each gradient goes by all-to-alls of a few blocks while the backward is at work; the broadcasts of what was updated come after the
update, and nothing hides them (hvd_lm.adapters.*.optimizer_split).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from hvd_lm.communication.gradients import Sent
from hvd_lm.config import Framework, ModelConfig
from hvd_lm.job.topology import Topology
from hvd_lm.model.split import BROADCAST, SUMMED_VALUES, Share, moment_shares, rounds
from hvd_lm.model.stages import parameters

_GRADIENT = "gradient."


def divided(model: ModelConfig, ranks: int) -> dict[str, Share]:
    """What ranks divide."""
    found = moment_shares(model, Topology(0, ranks, 1, "optimizer"))
    return {name: share for name, share in found.items() if share.divided_over}


def in_parts(sent: Sequence[Sent], shares: Mapping[str, Share], ranks: int) -> tuple[Sent, ...]:
    """`sent`, where gradients of what is divided go to their parts' ranks, block by block."""
    return tuple(part for one in sent for part in _parts(one, shares.get(one.name.removeprefix(_GRADIENT)), ranks))


def _parts(one: Sent, share: Share | None, ranks: int) -> Iterator[Sent]:
    if share is None or not one.name.startswith(_GRADIENT):
        yield one
        return
    of_row = one.size / share.parameter.shape[0]
    for number, blocks in enumerate(rounds(share, max(1, SUMMED_VALUES // ranks))):
        size = of_row * sum(map(len, blocks))
        yield replace(one, name=f"{one.name}.{number}", size=size, collective="alltoall")


def new_rows(shares: Mapping[str, Share], framework: Framework) -> tuple[Sent, ...]:
    """What all ranks get after an update, as float32: in PyTorch blocks from each rank, in TensorFlow whole parameters from all."""
    found = []
    for name, share in shares.items():
        of_row = 4.0 * math.prod(share.parameter.shape[1:])
        if framework == "tensorflow":
            found.append(Sent(f"updated.{name}", 0.0, of_row * share.parameter.shape[0], "float32", collective="allgather"))
            continue
        of_rounds = (block for blocks in rounds(share, BROADCAST) for block in blocks if block)
        found += [
            Sent(f"updated.{name}.{block.start}", 0.0, of_row * len(block), "float32", collective="broadcast")
            for block in of_rounds
        ]
    return tuple(found)


def share_of_update(model: ModelConfig, shares: Mapping[str, Share]) -> float:
    """Of all values, those that the rank with most of them updates."""
    sizes = {name: math.prod(parameter.shape) for name, parameter in parameters(model).items()}
    own = sum(math.prod(shares[name].shape) if name in shares else size for name, size in sizes.items())
    return own / sum(sizes.values())
