"""``hvd-lm plan``: which ranks, accumulation and compression to train with on a link that was measured, and why."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hvd_lm.communication.band import bounds
from hvd_lm.communication.link import Link
from hvd_lm.communication.measure import Work
from hvd_lm.communication.memory import memory_of_machine, memory_of_rank
from hvd_lm.communication.plan_words import explanation
from hvd_lm.communication.planned import COMPRESSIONS, Compression, Limit, Plan, Setting, way_of
from hvd_lm.communication.predict import Prediction, predict, require_predictable
from hvd_lm.config import CommunicationConfig, DataConfig, Framework, TopologyConfig, passes_for, require_target_batch
from hvd_lm.errors import ConfigError, require, require_positive
from hvd_lm.job.messages import warn
from hvd_lm.paths import make_paths

MOST_RANKS = 1_000_000
CLOSE = 0.03
"""Settings whose tokens a second are no further below the best are as fast; no limit is what takes no more of a step."""
MOST_OFF = 2.0
"""Global batches that are more times as large, or as small, as the target are listed, and not picked."""


@dataclass(frozen=True)
class PlanConfig:
    """Find the ranks, the accumulation and the compression that train fastest on a measured link, near a global batch."""

    link: Path
    """What hvd-lm measure wrote; with --config there, so that it knows the model's compute."""
    config: Path
    """YAML file of the run, as hvd-lm train --config takes it; all that is not planned is taken from it."""
    ranks: str
    """How many ranks there may be: FIRST..LAST for both and all powers of two between, or a list such as 2,3,8."""
    target_batch: int
    """Tokens that an optimizer step of all ranks should have."""
    noise_scale: float | None = None
    """Gradient noise scale of the run, in tokens, as --noise-scale-every has written it: says what a batch costs in learning."""
    json: bool = False
    """Print one JSON object in place of words."""
    other_links: tuple[Path, ...] = ()
    """More files of hvd-lm measure with that --config: how the way of the pick scales on each is drawn, and in the JSON."""
    out: Path | None = None
    """Folder for the pick as config.yaml and job.sh, ready to run, and for plan.png, a picture of all settings."""

    def __post_init__(self) -> None:
        make_paths(self, "link", "config", "other_links", "out")
        parse_ranks(self.ranks)
        require(self.target_batch >= 1, f"--target-batch must be at least 1 token, not {self.target_batch}")
        require_positive(self, "noise_scale")


def parse_ranks(text: str) -> tuple[int, ...]:
    """Of ``2..512`` both ends and the powers of two between them, of ``2,3,8`` these; ascending, each once. Raises ConfigError."""
    ranks: set[int] = set()
    if span := re.fullmatch(r"([0-9]{1,7})\.\.([0-9]{1,7})", text):
        first, last = map(int, span.groups())
        ranks = {first, last, *(2**power for power in range(MOST_RANKS.bit_length()) if first < 2**power < last)}
        require(first <= last, f"--ranks {text} ends before it begins: say {last}..{first}")
    elif re.fullmatch(r"[0-9]{1,7}(,[0-9]{1,7})*", text):
        ranks = set(map(int, text.split(",")))
    is_fit = bool(ranks) and 1 <= min(ranks) <= max(ranks) <= MOST_RANKS
    require(is_fit, f"--ranks must be FIRST..LAST or a list such as 2,3,8, of numbers from 1 to {MOST_RANKS}, not {text!r}")
    return tuple(sorted(ranks))


def plan(
    link: Link,
    framework: Framework,
    work: Work,
    topology: TopologyConfig,
    ranks: Sequence[int],
    target_batch: int,
    compressions: Sequence[Compression] = COMPRESSIONS,
    noise_scale: float | None = None,
    other_links: Mapping[str, Link] | None = None,
) -> Plan:
    """The settings of `work` on each number of `ranks` of `link`, with about `target_batch` tokens a step, by `ways`; and what the
    way of the pick takes on `other_links`, by their names.

    Of the settings near the target those within 3 % of the most tokens a second count as equal; of them that one comes first which
    changes learning least (none, fp16, powersgd, then what else the run asks for), then the one with fewest ranks. The rest is
    ordered in the same way.

    Raises ConfigError where nothing is near the target, or as `predict` does.
    """
    _check(work.data, ranks, target_batch)
    require_plannable(work.communication, topology)
    planner = _Planner(link, framework, topology, target_batch)
    works, left_out = ways(work, compressions)
    counts = sorted(set(ranks))
    found = [planner.setting(count, of) for count in counts for name, of in works.items() if count > 1 or name == "none"]
    near = _preferred([setting for setting in found if setting.is_near_target])
    far = _preferred([setting for setting in found if not setting.is_near_target])
    if not near:
        least = min(far, key=lambda setting: abs(setting.global_batch - target_batch))
        raise ConfigError(
            f"no --ranks keep a step within twice --target-batch {target_batch}: the nearest are {least.global_batch} tokens, on "
            f"{least.ranks} rank(s); ask for fewer ranks, another target or smaller micro-batches"
        )
    pick = near[0]
    limit, exact = planner.limit(works["none"], pick, counts, far)
    its = works[pick.way]
    planners = {name: _Planner(other, framework, topology, target_batch) for name, other in (other_links or {}).items()}
    return Plan(
        target_batch=target_batch,
        measured_ranks=link.ranks,
        limit=limit,
        explanation=explanation(work, target_batch, pick, limit, exact, noise_scale),
        pick=pick,
        settings=(*near, *far),
        left_out=left_out,
        other_links={name: tuple(its_own.setting(count, its) for count in counts) for name, its_own in planners.items()},
    )


def _check(data: DataConfig, ranks: Sequence[int], target_batch: int) -> None:
    require(bool(ranks) and min(ranks) >= 1, f"ranks must be numbers of at least 1, not {list(ranks)}")
    require_target_batch(target_batch, data)


def require_plannable(communication: CommunicationConfig, topology: TopologyConfig) -> None:
    """Raises ConfigError for what no plan is made of."""
    require_predictable(communication, topology)
    require(topology.split is None, f"--split {topology.split} is not planned yet: hvd-lm predict tells what a step of it takes")


def ways(work: Work, compressions: Sequence[Compression]) -> tuple[dict[str, Work], tuple[str, ...]]:
    """`work` by each way that goes with it, and why the others do not.

    Every gradient is summed, in its own step, with each of the `compressions`. Where the run asks for top-k or late gradients, that
    is one way more, or two. Where it asks for steps of a rank's own, so many are one, and each smaller power of four is another.
    """
    asked = work.communication
    plain = {"reduce_every": 1, "reduce_start_steps": 0, "late_gradients": False}
    changes: list[dict[str, Any]] = [{**plain, "compression": name} for name in compressions]
    changes += [{"reduce_every": 4**power} for power in range(1, MOST_RANKS.bit_length()) if 4**power < asked.reduce_every]
    if asked.compression == "topk" or asked.reduce_every > 1:
        changes.append({})
    if asked.late_gradients:
        changes += [{"compression": "none"}, {"compression": "fp16"}]
    found: dict[str, Work] = {}
    left_out = []
    for change in changes:
        try:
            its = replace(asked, **change)
            found[way_of(its)] = replace(work, communication=its)
        except ConfigError as error:
            left_out.append(f"{change['compression']}: {error}")
    return found, tuple(left_out)


def _preferred(settings: Sequence[Setting]) -> list[Setting]:
    """In order: again and again, of those that are as fast as the fastest left, the one that changes least, on fewest ranks."""
    left, ordered = list(settings), list[Setting]()
    while left:
        enough = (1 - CLOSE) * max(setting.tokens_per_second for setting in left)
        as_fast = [setting for setting in left if setting.tokens_per_second >= enough]
        chosen = min(as_fast, key=lambda its: (its.changes, its.ranks, -its.tokens_per_second))
        left.remove(chosen)
        ordered.append(chosen)
    return ordered


class _Planner:
    """Predicts for one link."""

    def __init__(self, link: Link, framework: Framework, topology: TopologyConfig, target_batch: int) -> None:
        self._link, self._framework, self._topology, self._target_batch = link, framework, topology, target_batch
        self._low, self._high = bounds(link)

    def setting(self, ranks: int, work: Work) -> Setting:
        """Of `work` on so many ranks."""
        work = self._accumulated(work, ranks)
        communication = work.communication
        count = communication.backward_passes_per_step
        found = self._predict(self._link, work, ranks)
        low, high = (self._predict(link, work, ranks) for link in (self._low, self._high))
        batch = ranks * count * work.data.batch_size * work.data.sequence_length
        return Setting(
            ranks=ranks,
            backward_passes_per_step=count,
            compression=communication.compression,
            reduce_every=communication.reduce_every,
            late_gradients=communication.late_gradients,
            global_batch=batch,
            is_near_target=self._target_batch / MOST_OFF <= batch <= self._target_batch * MOST_OFF,
            is_extrapolated=ranks not in (1, self._link.ranks),
            step_seconds=found.step_seconds,
            # A tensor that comes late may share a turn: a slower link is now and then a little faster.
            step_seconds_low=min(found.step_seconds, low.step_seconds),
            step_seconds_high=max(found.step_seconds, high.step_seconds),
            forward_seconds=found.forward_seconds,
            backward_seconds=found.backward_seconds,
            contention_seconds=found.contention_seconds,
            exposed_seconds=found.exposed_seconds,
            compression_seconds=found.compression_seconds,
            averaging_seconds=found.averaging_seconds,
            update_seconds=found.update_seconds,
            sent_bytes=found.sent_bytes,
            memory_bytes=memory_of_rank(work.with_vocabulary(), ranks, is_cpu=self._link.device.lower().endswith("cpu")),
            tokens_per_second=found.tokens_per_second,
            scaling_efficiency=found.scaling_efficiency,
            scaling_efficiency_low=min(found.scaling_efficiency, high.scaling_efficiency),
            scaling_efficiency_high=max(found.scaling_efficiency, low.scaling_efficiency),
        )

    def limit(self, work: Work, pick: Setting, ranks: Sequence[int], far: Sequence[Setting]) -> tuple[Limit, Prediction]:
        """What holds back the pick's ranks, or where it is one the next more ranks, with `work`, and that step."""
        count = pick.ranks if pick.ranks > 1 else min((one for one in ranks if one > 1), default=1)
        work = self._accumulated(work, count)
        here = self._predict(self._link, work, count)
        if here.exposed_seconds <= CLOSE * here.step_seconds:
            return ("batch" if any(its.ranks > pick.ranks for its in far) else "compute"), here
        its_own = self._link.collectives
        no_latency = replace(self._link, negotiation_seconds=0.0, collectives=tuple(replace(its, alpha=0.0) for its in its_own))
        no_bytes = replace(self._link, collectives=tuple(replace(its, beta=0.0) for its in its_own))
        by_bytes, by_latency = (self._predict(link, work, count).step_seconds for link in (no_latency, no_bytes))
        return ("bandwidth" if by_latency <= by_bytes else "latency"), here

    def _accumulated(self, work: Work, ranks: int) -> Work:
        count = passes_for(self._target_batch, ranks, work.data)
        return replace(work, communication=replace(work.communication, backward_passes_per_step=count))

    def _predict(self, link: Link, work: Work, ranks: int) -> Prediction:
        return predict(link, self._framework, work, self._topology, ranks)


def warn_of_the_pick(found: Plan, link: Link) -> None:
    """One line each: a rank that is larger than this machine, and a link of which no limit was seen."""
    has = memory_of_machine()
    if has is not None and found.pick.memory_bytes > has:
        needs = f"a rank needs {found.pick.memory_bytes / 2**30:,.1f} GiB at least, and this machine has {has / 2**30:,.1f}"
        warn(f"{needs}: take larger ones, a smaller model, or --split")
    if found.pick.ranks > 1 and not link.of("allreduce").beta:
        warn("no limit of the bandwidth shows in the link: measure again, with more --seconds or a larger --largest-mb")
