"""A parameter of the model: what everything that handles weights must know of one, said once.

    embedding                                  [V, E]    looked up; absent rows of its gradient are zero, unless it is tied
    lstm.<l>.input_kernel                      [4H, D]   D = E in layer 0, the units below elsewhere; gates in the order i, f, g, o
    lstm.<l>.recurrent_kernel                  [4H, H]   [4H, P] with a projection; the layers above then have D = P, too
    lstm.<l>.bias                              [4H]      one bias (PyTorch's second one is fixed at zero)
    lstm.<l>.projection_kernel                 [P, H]    of an LSTM with a projection
    lstm.<l>.multiplicative_input_kernel       [H, D]    of the multiplicative LSTM
    lstm.<l>.multiplicative_recurrent_kernel   [H, H]    the same
    lstm.<l>.<kernel>.gain                     [rows]    of kernels with weight normalization: W = gain * kernel / |kernel|, by rows
    attention.query_kernel                     [H, H]    of a model that translates with attention
    attention.output_kernel                    [H, 2H]   the same: of what it attends to, then of its own output
    output_kernel                              [V, H]    or [V, P]; absent if tied to the embedding; looked up by a sampled softmax
    output_bias                                [V]       the same
    class_kernel                               [C, H]    or [C, P]; in place of the output's, of a model that tells C classes apart
    class_bias                                 [C]       the same
    output.tail.<i>.projection_kernel          [P, H]    of cluster i of an adaptive softmax; H / D^(i+1) = P
    output.tail.<i>.kernel                     [C, P]    of the cluster's C words; no bias, as PyTorch's has none

With an adaptive softmax output_kernel and output_bias are the head's: its words, then one row for each cluster.

All float32. Checkpoints hold them under these names, optimizer moments too. Which of them a model has: `stages.parameters`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

Split = Literal["none", "rows", "layer"]
LookedUp = Literal["inputs", "output"] | None


@dataclass(frozen=True)
class Parameter:
    """One weight of the model."""

    name: str
    """Canonical name, the same in every framework and file."""
    shape: tuple[int, ...]
    initial_range: float
    """Initial values are uniform in +- this; 0 for zeros."""
    seed_key: tuple[int, ...]
    """With the seed of the run it decides the initial values, so that no other parameter has a say in them."""
    split: Split = "none"
    """How workers may share it: by rows, as a part of its layer, or not at all."""
    looked_up: LookedUp = None
    """What names the rows that alone have a gradient in a window: its inputs, or what the output judges by a sampled softmax.
    None if all rows have one."""
    forget_bias: float = 0.0
    """Added to the initial values of the second quarter of the rows: of a bias, the forget gates."""
    norms_of: Parameter | None = None
    """A matrix the norms of whose rows are the initial values, in place of all that is said above."""


def key_of_name(name: str) -> tuple[int, ...]:
    """A seed key for a parameter of any name: the first 128 bits of its SHA-256, as four 32-bit words."""
    digest = hashlib.sha256(name.encode()).digest()
    return tuple(int.from_bytes(digest[start : start + 4], "little") for start in range(0, 16, 4))
