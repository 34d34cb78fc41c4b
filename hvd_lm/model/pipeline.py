"""Which stages the ranks of a pipeline hold: consecutive ones, cut where the most expensive rank is cheapest."""

from __future__ import annotations

import math
from itertools import combinations, pairwise

from hvd_lm.config import ModelConfig
from hvd_lm.errors import ConfigError
from hvd_lm.model.stages import Stage, stages


def stages_of_ranks(model: ModelConfig, ranks: int) -> tuple[range, ...]:
    """For each rank the stages, as places in `stages(model)`, that it holds.

    A rank begins at a cell, an attention or the output; what drops goes with what is below it. Raises ConfigError if there are too
    few.
    """
    declared = stages(model)
    # The lookup costs nothing beside a product, and stays with the first cell.
    starts = [place for place, stage in enumerate(declared) if stage.kind != "lookup" and stage.parameters][1:]
    if ranks - 1 > len(starts):
        raise ConfigError(
            f"--split layers cannot divide {len(starts)} layer(s) and an output over {ranks} model ranks: take --model-parallel "
            f"{len(starts) + 1} or less, or more --layers"
        )
    cuts = min(combinations(starts, ranks - 1), key=lambda cuts: _dearest(declared, cuts))
    return tuple(range(*ends) for ends in pairwise((0, *cuts, len(declared))))


def multiplications(stage: Stage) -> float:
    """Of a token's forward through the stage; mean over the tokens where they differ."""
    if stage.kind == "lookup":
        return 0
    return sum(
        math.prod(parameter.shape) * stage.shares_of_tokens.get(role, 1)
        for role, parameter in stage.parameters.items()
        if len(parameter.shape) == 2
    )


def _dearest(declared: tuple[Stage, ...], cuts: tuple[int, ...]) -> float:
    parts = pairwise((0, *cuts, len(declared)))
    return max(sum(multiplications(stage) for stage in declared[start:stop]) for start, stop in parts)
