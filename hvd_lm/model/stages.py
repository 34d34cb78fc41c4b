"""The model, declared: the stages of a forward pass from below, each with its parameters. What computes them is an adapter's.

    lookup -> [drop words] -> [drop] -> cell -> [drop] -> ... -> cell -> [attention] -> [penalty] -> [drop] -> [penalty] -> output

Shapes: V vocabulary, E embedding, D input width, H units of a layer, P what it projects them to, U units of all layers together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from hvd_lm.config import Cell, ModelConfig
from hvd_lm.errors import ConfigError
from hvd_lm.model.clusters import clusters, widths
from hvd_lm.model.parameters import LookedUp, Parameter, key_of_name

Penalty = Literal["activation_penalty", "temporal_penalty"]
Kind = Literal["lookup", "drop", "drop_words", "output", "adaptive", "projected_lstm", "attention"] | Penalty | Cell
DROPS: tuple[Kind, ...] = ("drop", "drop_words")
"""What acts in training only, under a mask."""
PENALTIES: tuple[Penalty, ...] = ("activation_penalty", "temporal_penalty")
"""What acts on gradients only: those of the mean, over tokens and activations, of squares, or of squares of what has changed since
the token before."""

_EMBEDDING_RANGE = 0.1
GAIN = ".gain"
"""Ends the names of the lengths of a kernel's rows, under weight normalization."""
OF_CLASSES = "class_"
"""Begins the names of parameters that judge classes in place of words."""


@dataclass(frozen=True)
class Stage:
    """One step of the forward pass."""

    kind: Kind
    input_size: int
    """Width of what comes in; of a lookup: rows."""
    output_size: int
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    """Role within the stage -> parameter; one parameter may serve two stages (a tied embedding)."""
    units: int = 0
    """Width of h, and of c, that the stage carries from micro-batch to micro-batch; 0 if it carries none. Of a projected h
    the rest is zero."""
    rate: float = 0.0
    """Share that drops, or factor of a penalty, of a stage that does nothing else."""
    shares_of_tokens: Mapping[str, float] = field(default_factory=dict)
    """Role of a parameter -> the share of all tokens that are multiplied by it in training, as expected; 1 of those absent."""


def stages(config: ModelConfig) -> tuple[Stage, ...]:
    """The stages of the model, from below. Raises ConfigError if the vocabulary size is still open."""
    return tuple(replace(stage, parameters=_begun(config, stage.parameters)) for stage in _stages(config))


def parameters(config: ModelConfig) -> dict[str, Parameter]:
    """Name -> parameter, each once, in the order of the forward pass. Raises ConfigError if the vocabulary size is still open."""
    return {parameter.name: parameter for stage in stages(config) for parameter in stage.parameters.values()}


def _begun(config: ModelConfig, declared: Mapping[str, Parameter]) -> dict[str, Parameter]:
    """The same, beginning with the values that the config asks for."""
    found = dict(declared)
    for role, parameter in declared.items():
        if config.initial_range is not None:
            found[role] = replace(parameter, initial_range=0.0 if role == "bias" else config.initial_range)
        if role == "bias" and parameter.split == "layer":
            found[role] = replace(found[role], forget_bias=config.forget_bias)
    for role, parameter in declared.items():
        if parameter.norms_of:
            found[role] = replace(parameter, norms_of=found[role.removesuffix(GAIN)])
    return found


def state_size(config: ModelConfig) -> int:
    """Width of h, and of c, of all layers side by side (U)."""
    return sum(config.units)


def _stages(config: ModelConfig) -> Iterator[Stage]:
    vocabulary = config.vocabulary_size
    if vocabulary is None:
        raise ConfigError("the model needs a vocabulary size: set vocabulary_size, or train a tokenizer first")
    width = config.embedding_size
    # A tied embedding is the output kernel too: no row of its gradient is zero, unless that is sampled, which it does not tell.
    looked_up: LookedUp = None if config.tie_embedding else "inputs"
    embedding = Parameter("embedding", (vocabulary, width), _EMBEDDING_RANGE, (0,), split="rows", looked_up=looked_up)
    yield Stage("lookup", vocabulary, width, {"table": embedding})
    if config.embedding_dropout:
        yield Stage("drop_words", width, width, rate=config.embedding_dropout)
    yield from _drop(config, 0, width)
    kind: Kind = config.cell if config.projection_size is None else "projected_lstm"
    for layer, (units, above) in enumerate(zip(config.units, config.widths, strict=True)):
        declared = _cell_parameters(kind, layer, width, units, above)
        if config.weight_normalization:
            declared |= _gains(declared)
        yield Stage(kind, width, above, declared, units)
        if config.source_attention and layer == len(config.units) - 1:
            yield _attention(above)
        yield from _drop(config, layer + 1, above)
        width = above
    # Keys of the first format count its parameters: its initial values are bit for bit what they were.
    before = 1 + 3 * len(config.units)
    if config.classes:
        yield _classes(width, len(config.classes))
        return
    if config.softmax == "adaptive":
        yield _adaptive(config, vocabulary, width, before)
        return
    sampled: LookedUp = "output" if config.softmax == "sampled" else None
    kernel = Parameter("output_kernel", (vocabulary, width), _EMBEDDING_RANGE, (before,), split="rows", looked_up=sampled)
    of_bias = before if config.tie_embedding else before + 1
    bias = Parameter("output_bias", (vocabulary,), 0.0, (of_bias,), split="rows", looked_up=sampled)
    kernel = embedding if config.tie_embedding else kernel
    yield Stage("output", width, vocabulary, {"kernel": kernel, "bias": bias})


def _attention(width: int) -> Stage:
    """What a translation reads of its source. Initial values are uniform in +-1/sqrt(inputs), PyTorch's default."""
    shapes = {"query_kernel": (width, width), "output_kernel": (width, 2 * width)}
    names = {role: f"attention.{role}" for role in shapes}
    declared = {
        role: Parameter(names[role], shape, 1.0 / math.sqrt(shape[1]), key_of_name(names[role])) for role, shape in shapes.items()
    }
    return Stage("attention", width, width, declared)


def _classes(width: int, count: int) -> Stage:
    """The output of a model that tells classes apart. Initial values are uniform in +-1/sqrt(H), PyTorch's default."""
    kernel, bias = f"{OF_CLASSES}kernel", f"{OF_CLASSES}bias"
    declared = {
        "kernel": Parameter(kernel, (count, width), 1.0 / math.sqrt(width), key_of_name(kernel)),
        "bias": Parameter(bias, (count,), 0.0, key_of_name(bias)),
    }
    return Stage("output", width, count, declared)


def _adaptive(config: ModelConfig, vocabulary: int, width: int, before: int) -> Stage:
    """The output under an adaptive softmax. What clusters have begins uniform in +-1/sqrt(its inputs), PyTorch's default."""
    cutoffs = config.adaptive_cutoffs
    head = cutoffs[0] + len(cutoffs)
    declared = {
        "kernel": Parameter("output_kernel", (head, width), _EMBEDDING_RANGE, (before,)),
        "bias": Parameter("output_bias", (head,), 0.0, (before + 1,)),
    }
    shares = {}
    narrower = widths(width, cutoffs, config.adaptive_division)
    for index, (words, narrow) in enumerate(zip(clusters(cutoffs, vocabulary), narrower, strict=True)):
        shapes = {"projection_kernel": (narrow, width), "kernel": (len(words), narrow)}
        for role, shape in shapes.items():
            name = f"output.tail.{index}.{role}"
            declared[f"tail.{index}.{role}"] = Parameter(name, shape, 1.0 / math.sqrt(shape[1]), key_of_name(name))
            # Of words in the order of frequency, as sampled words are drawn (hvd_lm.model.candidates).
            shares[f"tail.{index}.{role}"] = math.log((words.stop + 1) / (words.start + 1)) / math.log(vocabulary + 1)
    return Stage("adaptive", width, vocabulary, declared, shares_of_tokens=shares)


def _drop(config: ModelConfig, place: int, width: int) -> Iterator[Stage]:
    """And what is penalized before and after it."""
    is_last = place == len(config.units)
    if is_last and config.temporal_penalty:
        yield Stage("temporal_penalty", width, width, rate=config.temporal_penalty)
    if rate := config.dropout_rates[place]:
        yield Stage("drop", width, width, rate=rate)
    if is_last and config.activation_penalty:
        yield Stage("activation_penalty", width, width, rate=config.activation_penalty)


def _gains(declared: Mapping[str, Parameter]) -> dict[str, Parameter]:
    """The lengths of the rows of all kernels; at the beginning a kernel is what it would be without."""
    return {
        role + GAIN: Parameter(its.name + GAIN, its.shape[:1], 0.0, key_of_name(its.name + GAIN), split=its.split, norms_of=its)
        for role, its in declared.items()
        if len(its.shape) == 2
    }


def _cell_parameters(kind: Kind, layer: int, width: int, units: int, above: int) -> dict[str, Parameter]:
    """Of a layer. Initial values are uniform in +-1/sqrt(H), PyTorch's default."""
    shapes = {"input_kernel": (4 * units, width), "recurrent_kernel": (4 * units, above), "bias": (4 * units,)}
    # Keys of the first format; its layers count from 1, three parameters each.
    keys: dict[str, tuple[int, ...]] = {role: (1 + 3 * layer + place,) for place, role in enumerate(shapes)}
    more: dict[str, tuple[int, ...]] = {}
    if kind == "mlstm":
        more = {"multiplicative_input_kernel": (units, width), "multiplicative_recurrent_kernel": (units, units)}
    elif kind == "projected_lstm":
        more = {"projection_kernel": (above, units)}
    keys |= {role: key_of_name(f"lstm.{layer}.{role}") for role in more}
    shapes |= more
    scale = 1.0 / math.sqrt(units)
    return {role: Parameter(f"lstm.{layer}.{role}", shape, scale, keys[role], split="layer") for role, shape in shapes.items()}
