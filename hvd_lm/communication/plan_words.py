"""A plan in words: three sentences that explain the pick, and a table of all settings."""

from __future__ import annotations

from hvd_lm.communication.measure import Work
from hvd_lm.communication.planned import Limit, Plan, Setting
from hvd_lm.communication.predict import Prediction


def explanation(
    work: Work, target_batch: int, pick: Setting, limit: Limit, exact: Prediction, noise_scale: float | None
) -> tuple[str, str, str]:
    """What limits, what the pick does about it, and what it costs in learning; `exact`: a step of the pick's ranks with gradients
    as they are."""
    return (
        _what_limits(limit, exact),
        _what_it_does(work, pick, exact),
        _what_it_costs(work, target_batch, pick, exact, noise_scale),
    )


def _what_limits(limit: Limit, exact: Prediction) -> str:
    if exact.ranks == 1:
        return "Compute limits: one rank has nothing to send."
    share = f"{exact.exposed_seconds / exact.step_seconds:.0%} of a step of {_time(exact.step_seconds)}"
    where = f"on {exact.ranks} ranks, with gradients as they are, {share} is communication that nothing hides"
    return {
        "compute": f"Compute limits: {where}.",
        "batch": f"The global batch limits: {where}, but steps of more ranks than that are over twice the target.",
        "bandwidth": f"The bandwidth of the link limits: {where}, most of it for bytes.",
        "latency": f"The latency of the link limits: {where}, most of it for steps and negotiations.",
    }[limit]


def _what_it_does(work: Work, pick: Setting, exact: Prediction) -> str:
    rate = f"{_time(pick.step_seconds)} a step, {pick.tokens_per_second:,.0f} tokens/s, {pick.scaling_efficiency:.0%} efficiency"
    count = pick.backward_passes_per_step
    window = f"{count} micro-batch{'' if count == 1 else 'es'} a step"
    if pick.ranks == 1:
        return f"The pick stays on one rank, with {window}: {rate}."
    sent = f"{pick.sent_bytes / 1e6:,.1f} MB out of each of {pick.ranks} ranks"
    instead = f"in place of {exact.sent_bytes / 1e6:,.1f}"
    communication, compression = work.communication, _time(pick.compression_seconds)
    columns = communication.powersgd_rank
    if pick.reduce_every > 1:
        return f"The pick averages weights every {pick.reduce_every} steps, in the mean {sent} {instead}, after {window}: {rate}."
    if pick.late_gradients:
        what = "gradients as they are" if pick.compression == "none" else "halves"
        return f"The pick sends {what}, one step late, {sent} {instead}, after {window}: {rate}."
    return {
        "none": f"The pick sends gradients as they are, {sent}, after {window}: {rate}.",
        "fp16": f"The pick sends halves, {sent} {instead}, after {window}: {rate}.",
        "powersgd": f"The pick sends two matrices of {columns} columns for a gradient, {sent} {instead}, after {window}: {rate}, "
        f"{compression} of the step to compress.",
        "topk": f"The pick sends {communication.topk_share:.2%} of a matrix's values, {sent} {instead}, after {window}: {rate}, "
        f"{compression} of the step to select.",
    }[pick.compression]


def _what_it_costs(work: Work, target_batch: int, pick: Setting, exact: Prediction, noise_scale: float | None) -> str:
    batch = f"a step has {pick.global_batch:,} tokens where {target_batch:,} were asked for"
    if noise_scale is not None:
        # McCandlish et al. 2018, section 2.3, of a batch that is the same all along.
        tokens, steps = 1 + pick.global_batch / noise_scale, 1 + noise_scale / pick.global_batch
        least = f"{tokens:.2f} times the fewest tokens and {steps:.2f} times the fewest steps"
        batch += f", at a noise scale of {noise_scale:,.0f} tokens {least}"
    begins = f"{work.communication.powersgd_start_steps} exact steps of {_time(exact.step_seconds)} come first"
    if pick.reduce_every > 1:
        seen = _seen("every-8")
        return f"In learning it is another algorithm, whose curve depends on ranks and learning rate ({seen}), and {batch}."
    if pick.late_gradients:
        return f"In learning it is another algorithm, whose gradients are one step old ({_seen('late')}), and {batch}."
    return {
        "none": f"In learning it costs nothing: gradients are exact, and {batch}.",
        "fp16": f"In learning it costs rounding to halves, under a loss scale, and {batch}.",
        "powersgd": f"In learning it is another algorithm, whose curve is close ({_seen('powersgd')}): {begins}, and {batch}.",
        "topk": f"In learning it is another algorithm ({_seen('topk')}), which wants plain SGD: the first "
        f"{work.communication.topk_start_steps} steps send more, and {batch}.",
    }[pick.compression]


EXACT = 117.3
SEEN = {"powersgd": ("rank 4", 120.0), "topk": ("share 0.001", 116.6), "every-8": ("every 8", 117.7), "late": ("rate 20", 129.6)}
"""Validation perplexities after six epochs of the Penn Treebank, as docs/communication.md has them."""


def _seen(way: str) -> str:
    what, perplexity = SEEN[way]
    return f"on the Penn Treebank, {what}, it ended at a perplexity of {perplexity} where exact gradients had {EXACT}"


def _time(seconds: float) -> str:
    return f"{seconds:,.2f} s" if seconds >= 1 else f"{seconds * 1e3:,.1f} ms"


def words(found: Plan) -> str:
    """What a person reads: a table, and why."""
    head = (
        f"{'':<2}{'ranks':>7}{'N':>6} {'compression':<12}{'tokens a step':>14}{'step, ms':>12}{'between':>23}{'exposed, ms':>13}"
        f"{'tokens/s':>13}{'efficiency':>11}{'MB sent':>10}{'GiB':>8}"
    )
    lines = [head, *(_row(setting, setting == found.pick) for setting in found.settings)]
    if any(setting.is_extrapolated for setting in found.settings):
        lines.append(f"~ extrapolated: the link was measured with {found.measured_ranks} ranks")
    if not all(setting.is_near_target for setting in found.settings):
        lines.append(f"x not picked: a step is more than twice off {found.target_batch:,} tokens")
    lines += [f"left out: {reason}" for reason in found.left_out]
    return "\n".join([*lines, "", *found.explanation])


def _row(its: Setting, is_pick: bool) -> str:
    mark = ">" if is_pick else " " if its.is_near_target else "x"
    low, high = (f"{seconds * 1e3:,.1f}" for seconds in (its.step_seconds_low, its.step_seconds_high))
    cells = (
        f"{mark}{'~' if its.is_extrapolated else ' '}{its.ranks:>7}{its.backward_passes_per_step:>6} {its.way:<12}",
        f"{its.global_batch:>14,}{its.step_seconds * 1e3:>12,.1f}{f'{low} to {high}' if its.ranks > 1 else '':>23}",
        f"{its.exposed_seconds * 1e3:>13,.1f}{its.tokens_per_second:>13,.0f}{its.scaling_efficiency:>11.1%}",
        f"{its.sent_bytes / 1e6:>10,.2f}{its.memory_bytes / 2**30:>8,.2f}",
    )
    return "".join(cells)
