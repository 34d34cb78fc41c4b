"""``hvd-lm predict``: what a step of a run will take on a link that was measured, and how much of it is communication."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hvd_lm.communication.compressed import Window, pace, simulate_compressed
from hvd_lm.communication.compute import micro_batches_together
from hvd_lm.communication.gradients import Sent, average, gradients, late
from hvd_lm.communication.link import Compute, Link
from hvd_lm.communication.measure import Work, processor
from hvd_lm.communication.ring import bandwidth_bound, course
from hvd_lm.communication.simulation import HorovodsThread, Served, Service, served_in_turn
from hvd_lm.config import CommunicationConfig, Framework, ModelConfig, TopologyConfig
from hvd_lm.errors import ConfigError, require
from hvd_lm.job.messages import warn
from hvd_lm.paths import make_paths
from hvd_lm.plain_values import to_dict

HOROVODS_CYCLE = 1e-3
"""Seconds; what Horovod takes unless told otherwise."""


@dataclass(frozen=True)
class PredictConfig:
    """Predict the time of an optimizer step on a measured link, in its parts."""

    link: Path
    """What hvd-lm measure wrote; with --config there, so that it knows the model's compute."""
    config: Path
    """YAML file of the run, as hvd-lm train --config takes it."""
    ranks: int
    """How many ranks the run is to have."""
    json: bool = False
    """Print one JSON object in place of words."""

    def __post_init__(self) -> None:
        make_paths(self, "link", "config")
        require(self.ranks >= 1, f"--ranks must be at least 1, not {self.ranks}")


@dataclass(frozen=True)
class Prediction:
    """Of one optimizer step, in seconds."""

    step_seconds: float
    """forward + backward + compression + exposed + averaging + update"""
    forward_seconds: float
    """Of all micro-batches of the window, without the output layer's."""
    backward_seconds: float
    """Of all micro-batches of the window."""
    compression_seconds: float
    """Of a rank, to compress and decompress under PowerSGD, to select and to add up under top-k."""
    update_seconds: float
    exposed_seconds: float
    """The tail of the communication that neither backward nor compression hides, of late gradients the next window either."""
    averaging_seconds: float
    """To average the weights under --reduce-every, divided by its steps."""
    hidden_seconds: float
    """Communication beside the last backward, of late gradients beside the window, and beside compression."""
    communication_seconds: float
    """Of all operations, by the closed forms."""
    last_backward_seconds: float
    """What can hide it."""
    negotiation_seconds: float
    """Of one turn of Horovod's thread."""
    closed_form_exposed_seconds: float
    """Without negotiation, cycles and fusion: a lower bound of `exposed_seconds` as long as nothing is fused."""
    bandwidth_bound_seconds: float
    """That no way to sum, or to gather, the same bytes is below."""
    sent_bytes: float
    """Of a rank in a step, on its way out."""
    tokens_per_second: float
    """Of all ranks."""
    scaling_efficiency: float
    """Tokens a second over those of as many ranks that neither communicate nor compress."""
    ranks: int
    measured_ranks: int
    """Of the link."""
    operations: tuple[Served, ...]
    """As simulated, since the last backward began; of late gradients, since the window did. Those of an average are not in it."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, by the names above."""
        return asdict(self)


def predict(link: Link, framework: Framework, work: Work, topology: TopologyConfig, ranks: int) -> Prediction:
    """A step of `work` in `framework` on `ranks` ranks of `link`.

    Raises ConfigError for what the model of communication does not know yet, or where the link was measured for something else.
    """
    work = work.with_vocabulary()
    communication, data = work.communication, work.data
    _check(link, framework, work, topology)
    compute = _compute(link, work)
    count = communication.backward_passes_per_step
    together = micro_batches_together(data, communication)
    # Those of a window that fill none go first.
    backward = compute.backward_base + together * compute.backward
    backwards = math.ceil(count / together) * compute.backward_base + count * compute.backward
    sent = gradients(work.model, data, communication, ranks, backward) if ranks > 1 else ()
    beside = backward
    if communication.late_gradients:
        # Gradients of the window before leave as this one begins; what says of it leaves in its own last backward.
        beside = count * compute.forward + backwards
        sent = late(sent, beside - backward)
    service = _service(link, ranks)
    operations, last = _window(sent, link, work, service, beside)
    exposed = max(0.0, last.end - beside - last.compression)
    alone = count * compute.forward + backwards + compute.update
    weights = average(work.model) if ranks > 1 and communication.reduce_every > 1 else ()
    averaging = _averaging(weights, link, work, service) / communication.reduce_every
    step = alone + last.compression + exposed + averaging
    rounds = [(one, 1.0) for one in sent] + [(one, 1 / communication.reduce_every) for one in weights]
    seconds = sum(served.done - served.begun for served in operations)
    return Prediction(
        step_seconds=step,
        forward_seconds=count * compute.forward,
        backward_seconds=backwards,
        compression_seconds=last.compression,
        update_seconds=compute.update,
        exposed_seconds=exposed,
        averaging_seconds=averaging,
        hidden_seconds=max(0.0, seconds - exposed),
        communication_seconds=seconds + averaging,
        last_backward_seconds=backward,
        negotiation_seconds=link.negotiation_seconds,
        closed_form_exposed_seconds=max(
            0.0,
            served_in_turn(sent, service) - beside - last.compression,
            # Nothing hides what was selected after the backward.
            sum(service(one.size, one.number_format, one.collective) for one in sent if one.selection),
        ),
        bandwidth_bound_seconds=sum(
            share * _volume(one, ranks) * link.of(one.collective, one.number_format).beta for one, share in rounds
        ),
        sent_bytes=sum(share * _volume(one, ranks) for one, share in rounds),
        tokens_per_second=ranks * count * data.batch_size * data.sequence_length / step if step else math.inf,
        scaling_efficiency=alone / step if step else 1.0,
        ranks=ranks,
        measured_ranks=link.ranks,
        operations=operations,
    )


def _window(sent: Sequence[Sent], link: Link, work: Work, service: Service, beside: float) -> tuple[tuple[Served, ...], Window]:
    """Operations, and the end of what takes `beside` seconds beside them."""
    thread = _thread(link, work, service)
    its = pace(_compute(link, work), work.model, work.optimizer)
    window = simulate_compressed(sent, thread, its, work.communication.powersgd_rank, beside)
    return tuple(thread.operations), window


def _thread(link: Link, work: Work, service: Service) -> HorovodsThread:
    communication = work.communication
    return HorovodsThread(
        service,
        negotiation=link.negotiation_seconds,
        cycle=HOROVODS_CYCLE if communication.cycle_time_ms is None else communication.cycle_time_ms / 1e3,
        fusion_bytes=(communication.fusion_threshold_mb or 0) * 2.0**20,
    )


def _averaging(weights: Sequence[Sent], link: Link, work: Work, service: Service) -> float:
    """Of all ranks' weights, block by block, each waited for: the adapters' `average`."""
    its = pace(_compute(link, work), work.model, work.optimizer)
    now = 0.0
    thread = _thread(link, work, service)
    for block in weights:
        thread.submit(replace(block, ready=now))
        thread.take_turn()
        now = thread.done[block.name] + its.average(block.size / 4)
    return now


def _volume(one: Sent, ranks: int) -> float:
    """Bytes that leave each rank."""
    if one.collective == "allreduce":
        return bandwidth_bound(one.size + one.second, ranks, 1.0)
    return course(one.collective, ranks).volume * one.size


def _service(link: Link, ranks: int) -> Service:
    return lambda size, number_format, collective: link.seconds(collective, size, ranks, number_format)


# --- what it is not for ----------------------------------------------------------------------------------


def _check(link: Link, framework: Framework, work: Work, topology: TopologyConfig) -> None:
    if framework != link.framework:
        again = f"measure with --framework {framework}"
        raise ConfigError(f"the link was measured with {link.framework}, and the run is in {framework}: {again}")
    require_predictable(work.communication, topology)


def require_predictable(communication: CommunicationConfig, topology: TopologyConfig) -> None:
    """Raises ConfigError for what the model of communication does not know yet."""
    for given, what in (
        (topology.split, f"--split {topology.split}"),
        (communication.reduction != "sum", f"--reduction {communication.reduction}"),
        (communication.hierarchical_allreduce, "--hierarchical-allreduce"),
        (communication.autotune, "--autotune"),
    ):
        if given:
            raise ConfigError(f"{what} is not predicted yet: only whole models, summed by rings")


def _compute(link: Link, work: Work) -> Compute:
    """The link's, if it is that of `work`."""
    compute = link.compute
    again = "measure again, with --config of this run"
    if compute is None:
        raise ConfigError(f"the link knows no model's compute: {again}")
    wanted = {
        **to_dict(work.model),
        "optimizer": work.optimizer.optimizer,
        "batch_size": work.data.batch_size,
        "sequence_length": work.data.sequence_length,
    }
    timed: Mapping[str, Any] = {
        # What an older version did not know is as it was then.
        **to_dict(ModelConfig()),
        **compute.model,
        "optimizer": compute.optimizer,
        "batch_size": compute.batch_size,
        "sequence_length": compute.sequence_length,
    }
    for name, value in wanted.items():
        if timed.get(name) != value:
            raise ConfigError(f"the compute was timed with {name} {timed.get(name)}, and the run has {value}: {again}")
    return compute


def warn_of_other_hardware(link: Link) -> None:
    """One line, where this machine is another one than the link's, and where more ranks are asked for than were measured."""
    if (here := processor()) != link.processor:
        warn(f"the link was measured on {link.processor}, and this is {here}: the prediction is for the former")


_ALWAYS = ("forward", "backward", "exposed communication", "update")
"""Parts that are told even where they are nothing."""


def words(found: Prediction) -> str:
    """What a person reads."""
    parts = {
        "forward": found.forward_seconds,
        "backward": found.backward_seconds,
        "compression": found.compression_seconds,
        "exposed communication": found.exposed_seconds,
        "average of weights": found.averaging_seconds,
        "update": found.update_seconds,
    }
    lines = [f"a step on {found.ranks} rank(s): {found.step_seconds * 1e3:,.1f} ms, {found.tokens_per_second:,.0f} tokens/s"]
    told = {name: seconds for name, seconds in parts.items() if seconds or name in _ALWAYS}
    lines += [f"  {name:<22}{seconds * 1e3:>12,.1f} ms{seconds / found.step_seconds:>7.1%}" for name, seconds in told.items()]
    lines.append(
        f"communication {found.communication_seconds * 1e3:,.1f} ms in {len(found.operations)} operations, of which "
        f"{found.hidden_seconds * 1e3:,.1f} ms beside the last backward of {found.last_backward_seconds * 1e3:,.1f} ms; "
        f"{found.sent_bytes / 1e6:,.1f} MB out of each rank"
    )
    lines.append(f"scaling efficiency {found.scaling_efficiency:.1%}")
    if found.ranks not in (1, found.measured_ranks):
        lines.append(f"the link was measured with {found.measured_ranks} ranks: the rest is extrapolated by the closed forms")
    return "\n".join(lines)
