"""What a rank keeps in memory for a model, told from what is declared. What a framework takes besides is not in it."""

from __future__ import annotations

import math
import os
from contextlib import suppress

from hvd_lm.communication.compute import micro_batches_together
from hvd_lm.communication.measure import Work
from hvd_lm.compression.compressors import PowerSGD
from hvd_lm.compression.selectors import TopK
from hvd_lm.model.stages import DROPS, PENALTIES, Stage, parameters, stages

_FLOAT = 4
_CHUNK = 256
"""Tokens that are judged at a time on a CPU."""
_ACCELERATOR_LOGITS = 1 << 26
"""Logits that are made at a time on an accelerator."""


def memory_of_rank(work: Work, ranks: int, *, is_cpu: bool) -> float:
    """Bytes of weights, gradients, moments, what is kept or late of gradients, and activations of what shares a backward.

    Left out: the program itself, packed weights and temporary arrays, and Horovod's buffers. Peaks that were measured above the
    program are 1.2 to 1.5 times weights, gradients, moments and activations (docs/speed.md).
    """
    shapes = [parameter.shape for parameter in parameters(work.model).values()]
    values = sum(map(math.prod, shapes)) * (2 + len(work.optimizer.moments))
    if work.communication.compression == "powersgd" and ranks > 1:
        powersgd = PowerSGD(work.communication.powersgd_rank)
        values += sum(math.prod(shape) + powersgd.rank * shape[1] for shape in shapes if powersgd.compresses(shape))
    if work.communication.compression == "topk" and ranks > 1:
        topk = TopK(work.communication.topk_share)
        kinds = 2 if work.communication.topk_momentum else 1
        values += sum(kinds * math.prod(shape) for shape in shapes if topk.count("", shape, step=0))
    if work.model.weight_dropout:
        # Of what recurs: what is left of it, the gradient by that, and the mask as floats.
        names = parameters(work.model)
        values += 3 * sum(math.prod(names[name].shape) for name in names if name.endswith(".recurrent_kernel"))
    if work.communication.late_gradients:
        values += sum(map(math.prod, shapes))
    return _FLOAT * (values + _activations(work, is_cpu=is_cpu))


def _activations(work: Work, *, is_cpu: bool) -> float:
    """Values: of each layer the gates, and h and c of every step and of the one before; of the output logits and gradients."""
    together = micro_batches_together(work.data, work.communication)
    tokens = together * work.data.batch_size * work.data.sequence_length
    sequences = together * work.data.batch_size
    found = 0.0
    for stage in stages(work.model):
        if stage.units:
            found += 4 * tokens * stage.units + 2 * (tokens + sequences) * stage.units
        elif stage.kind in ("lookup", *DROPS, *PENALTIES):
            found += tokens * stage.output_size
        elif stage.kind == "attention":
            # Of each step queries, what they attend to and outputs, and weights of all steps.
            found += tokens * (4 * stage.input_size + 2 * work.data.sequence_length)
        else:
            words = _words(stage, work)
            at_a_time = _CHUNK if is_cpu else max(_CHUNK, _ACCELERATOR_LOGITS // max(1, int(words)))
            found += 2 * tokens * stage.input_size + min(tokens, at_a_time) * words
    return found


def _words(stage: Stage, work: Work) -> float:
    """That a token is judged against, as expected."""
    if work.model.softmax == "sampled":
        return work.model.sampled_words
    kernels = ((role, parameter) for role, parameter in stage.parameters.items() if role.endswith("kernel"))
    return sum(parameter.shape[0] * stage.shares_of_tokens.get(role, 1) for role, parameter in kernels)


def memory_of_machine() -> float | None:
    """Bytes of this one; None where the system does not tell."""
    with suppress(OSError, ValueError):
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return None
