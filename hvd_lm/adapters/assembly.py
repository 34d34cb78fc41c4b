"""How the stages that a rank holds are put together from what is declared, whatever the framework that computes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from hvd_lm.config import ModelConfig
from hvd_lm.data.sources import IGNORED
from hvd_lm.model import stages as declared
from hvd_lm.model.clusters import clusters
from hvd_lm.model.split import Share

Lookup = TypeVar("Lookup")
Stage = TypeVar("Stage")
Output = TypeVar("Output")


class Cluster(NamedTuple):
    """Words of an adaptive softmax that are judged among themselves, with the framework's weights."""

    words: range
    place: int
    """Among the clusters; in the head they come after its words."""
    projection_kernel: Any
    """[P, H]"""
    kernel: Any
    """[words, P]"""


class Made(NamedTuple, Generic[Lookup, Stage, Output]):
    """The stages of a rank, from below."""

    lookup: Lookup | None
    """The first of `stages`, if this rank has it."""
    stages: list[Stage]
    output: Output
    """Of the last rank of a pipeline; of others, what passes activations on."""


@dataclass(frozen=True)
class Divided:
    """What stages need to know of other ranks."""

    places: range
    """Of the declared stages, those of this rank."""
    shares: Mapping[str, Share]
    group: Any = None
    """The framework's ModelGroup, if one divides what is split by rows."""
    below: Any = None
    """The framework's Neighbour on that side, in a pipeline."""
    above: Any = None


@dataclass(frozen=True)
class Kit(Generic[Lookup, Stage, Output]):
    """The stages of a framework. Weights come by role."""

    lookup: Callable[..., Lookup]
    """Of the table; `split_lookup` of a part of it, all parts, and the group."""
    split_lookup: Callable[..., Lookup]
    output: Callable[..., Output]
    """Of kernel and bias; `split_output` of parts of them, all parts, and the group; `adaptive_output` of the head's, and of
    all clusters."""
    picked_output: Callable[..., Output]
    """As `output`, of a model many of whose tokens have no target."""
    split_output: Callable[..., Output]
    adaptive_output: Callable[..., Output]
    arrive: Callable[[Any, int], Stage]
    """Of the neighbour below, and the width of what comes."""
    depart: Callable[[Any, int], Output]
    """Of the neighbour above, and the width of what goes."""
    others: Mapping[declared.Kind, Callable[[ModelConfig, declared.Stage, Any], Stage]]
    """What drops, and the cells."""


def source_end(config: ModelConfig) -> int:
    """Of a model with attention."""
    assert config.source_end is not None
    return config.source_end


def assemble(
    config: ModelConfig, weights: Mapping[str, Any], divided: Divided, kit: Kit[Lookup, Stage, Output]
) -> Made[Lookup, Stage, Output]:
    """`weights`: this rank's rows, by their canonical names."""
    made: list[Any] = []
    lookup: Lookup | None = None
    output: Output | None = None
    held = [declared.stages(config)[place] for place in divided.places]
    if divided.below:
        made.append(kit.arrive(divided.below, held[0].input_size))
    for stage in held:
        of_stage = {role: weights[parameter.name] for role, parameter in stage.parameters.items()}
        if stage.kind == "lookup":
            lookup = kit.lookup(of_stage["table"])
            if divided.group:
                lookup = kit.split_lookup(of_stage["table"], divided.shares[stage.parameters["table"].name].parts, divided.group)
            made.append(lookup)
        elif stage.kind == "output":
            kernel, bias = of_stage["kernel"], of_stage["bias"]
            output = (kit.output if config.source_end is None else kit.picked_output)(kernel, bias)
            if divided.group:
                output = kit.split_output(kernel, bias, divided.shares[stage.parameters["kernel"].name].parts, divided.group)
        elif stage.kind == "adaptive":
            found = [
                Cluster(words, place, of_stage[f"tail.{place}.projection_kernel"], of_stage[f"tail.{place}.kernel"])
                for place, words in enumerate(clusters(config.adaptive_cutoffs, stage.output_size))
            ]
            output = kit.adaptive_output(of_stage["kernel"], of_stage["bias"], found)
        else:
            made.append(kit.others[stage.kind](config, stage, of_stage))
    if divided.above:
        output = kit.depart(divided.above, held[-1].output_size)
    assert output is not None
    return Made(lookup, made, output)


def noise_of_stages(
    config: ModelConfig, places: range, masks: Sequence[NDArray[np.bool_]], targets_TB: NDArray[np.int32], weight: float
) -> list[NDArray[Any] | None]:
    """What those stages of a rank that take noise take of a micro-batch, from below: of `masks` of the whole model theirs, if there
    are any; and what is penalized the weight of each token, ``float32 [T, B]``, 0 where its target is ignored."""
    masks_left, noise = iter(masks), list[NDArray[Any] | None]()
    for place, stage in enumerate(declared.stages(config)):
        mask = next(masks_left, None) if stage.kind in declared.DROPS else None
        if place in places and stage.kind in declared.DROPS:
            noise.append(mask)
        elif place in places and stage.kind in declared.PENALTIES:
            noise.append(np.where(targets_TB == IGNORED, 0.0, weight).astype(np.float32))
    return noise
