"""Whether a step may stand: its loss and its gradient are finite, or a smaller loss scale will make them so."""

from __future__ import annotations

import math

from hvd_lm.adapters.base import StepResult


def refused(loss: float, outcome: StepResult, step: int, *, may_overflow: bool) -> str | None:
    """Why training cannot go on after `step`, and what to do; None if it can. `may_overflow`: a loss scale is to be halved then."""
    if outcome.ranks_beyond_halves:
        what = f"activations of {outcome.ranks_beyond_halves} rank(s) were above 65504, where float16 ends,"
        advice = "take --compression none, or lower --learning-rate"
    elif not math.isfinite(loss):
        what, advice = f"the loss is {loss}", _SMALLER_STEPS
    elif not (outcome.applied or may_overflow):
        what, advice = f"the gradient norm is {outcome.gradient_norm}", _SMALLER_STEPS
    else:
        return None
    return not_applied(what, step, advice)


_SMALLER_STEPS = "lower --learning-rate, set --clip, or add --warmup-steps"


def not_applied(what: str, step: int, advice: str = _SMALLER_STEPS) -> str:
    """The words for it."""
    return f"{what} at step {step}, which was not applied: {advice}"
