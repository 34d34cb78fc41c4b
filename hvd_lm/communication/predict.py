"""``hvd-lm predict``: what a step of a run will take on a link that was measured, and how much of it is communication."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hvd_lm.communication.compressed import Pace, pace, simulate_compressed
from hvd_lm.communication.divided_update import divided, in_parts, new_rows, share_of_update
from hvd_lm.communication.divided_vocabulary import divided_vocabulary
from hvd_lm.communication.gradients import Sent, average, gradients, late
from hvd_lm.communication.link import Compute, Link
from hvd_lm.communication.measure import Work, processor
from hvd_lm.communication.parts import Parts, Windows, one_after_the_other, rates_of, service_of_window, thread_of, volume, windows
from hvd_lm.communication.pipeline import pipeline
from hvd_lm.communication.simulation import HorovodsThread, Served, TrainingThread, overlap, served_in_turn
from hvd_lm.compression.limits import require_any_ranks
from hvd_lm.config import CommunicationConfig, Framework, ModelConfig, TopologyConfig
from hvd_lm.errors import ConfigError, require
from hvd_lm.job.messages import warn
from hvd_lm.job.topology import arrange
from hvd_lm.paths import make_paths
from hvd_lm.plain_values import to_dict
from hvd_lm.training.local_steps import told_every

_ROUNDS = 50
"""In which contention and what it hides are found together, at most."""


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
    """forward + backward + contention + compression + exchange + exposed + averaging + update + sharing"""
    forward_seconds: float
    """Of all micro-batches of the window, without the output layer's."""
    backward_seconds: float
    """Of all micro-batches of the window."""
    contention_seconds: float
    """That forwards and backwards take longer beside communication, with which they share cores (`contention`)."""
    compression_seconds: float
    """Of a rank, to compress and decompress under PowerSGD, to select and to add up under top-k, to cast to halves and back."""
    update_seconds: float
    exchange_seconds: float
    """That a rank waits for others of its model group within forwards and backwards: for rows, activations, its neighbours."""
    exposed_seconds: float
    """The tail of the communication that neither backward nor compression hides, of late gradients the next window either."""
    averaging_seconds: float
    """To average the weights under --reduce-every, divided by its steps."""
    sharing_seconds: float
    """Under --split optimizer, to give all ranks what each has updated."""
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
    """A step of `work` in `framework` on `ranks` ranks of `link`, arranged as `topology` says.

    Raises ConfigError for what the model of communication does not know yet, where the link was measured for something else, or
    where so many ranks cannot be arranged so.
    """
    work = work.with_vocabulary()
    _check(link, framework, work, topology)
    its = windows(_compute(link, work), work)
    grid = arrange(topology, 0, ranks)
    if grid.model_size > 1:
        arranged = pipeline if grid.split == "layers" else divided_vocabulary
        parts = arranged(link, work, its, grid.data_size, grid.model_size)
    else:
        parts = _whole_models(link, framework, work, its, ranks, is_divided=grid.split == "optimizer" and ranks > 1)
    step, data = parts.step, work.data
    tokens = grid.readers * its.micro_batches * data.batch_size * data.sequence_length
    return Prediction(
        step_seconds=step,
        forward_seconds=parts.forward,
        backward_seconds=parts.backward,
        contention_seconds=parts.contention,
        compression_seconds=parts.compression,
        update_seconds=parts.update,
        exchange_seconds=parts.exchange,
        exposed_seconds=parts.exposed,
        averaging_seconds=parts.averaging,
        sharing_seconds=parts.sharing,
        hidden_seconds=parts.hidden,
        communication_seconds=parts.communication,
        last_backward_seconds=parts.last_backward,
        negotiation_seconds=link.negotiation(ranks),
        closed_form_exposed_seconds=parts.closed_form_exposed,
        bandwidth_bound_seconds=sum(
            times * volume(one, ranks) * link.of(one.collective, one.number_format).beta for one, times in parts.travels
        ),
        sent_bytes=sum(times * volume(one, ranks) for one, times in parts.travels),
        tokens_per_second=tokens / step if step else math.inf,
        scaling_efficiency=grid.readers * its.alone / (ranks * step) if step else 1.0,
        ranks=ranks,
        measured_ranks=link.ranks,
        operations=parts.operations,
    )


def _whole_models(link: Link, framework: Framework, work: Work, its: Windows, ranks: int, *, is_divided: bool) -> Parts:
    """A whole model on each rank; what updates it `is_divided`, or not."""
    shares = divided(work.model, ranks) if is_divided else {}
    service, paced = service_of_window(link, work, ranks), pace(its.compute, work.model, work.optimizer)
    communication, contention = work.communication, 0.0
    for _ in range(_ROUNDS):
        # What compute is longer by hides more, which makes it longer.
        sent, beside = _sent(work, its, ranks, contention)
        sent = in_parts(sent, shares, ranks)
        thread = thread_of(link, work, service, ranks, busy_until=beside)
        last = simulate_compressed(sent, thread, paced, communication.powersgd_rank, beside)
        before, contention = contention, (1 - rates_of(link, work).compute) * overlap(thread.operations, beside)
        if math.isclose(before, contention, rel_tol=1e-6):
            break
    # All ranks' norms are one, before anything is updated.
    norm = (Sent("norm", 0.0, 8.0, "float64"),) if shares else ()
    exposed = max(0.0, last.end - beside - last.compression) + one_after_the_other(norm, thread_of(link, work, service, ranks))
    told = 1
    if communication.reduce_every > 1:
        told = told_every(exposed, its.alone, communication.reduce_every, communication.stall_shutdown_seconds)
    weights = average(work.model) if ranks > 1 and communication.reduce_every > 1 else ()
    averaging = _averaging(weights, thread_of(link, work, service, ranks), paced) / communication.reduce_every
    rows = new_rows(shares, framework)
    sharing = one_after_the_other(rows, thread_of(link, work, service, ranks))
    seconds = sum(served.done - served.begun for served in thread.operations)
    return Parts(
        forward=its.forward,
        backward=its.backward,
        contention=contention,
        update=its.compute.update * (share_of_update(work.model, shares) if shares else 1.0),
        compression=last.compression,
        exposed=exposed / told,
        averaging=averaging,
        sharing=sharing,
        hidden=max(0.0, seconds - exposed),
        communication=seconds + averaging + sharing,
        last_backward=its.last_backward,
        closed_form_exposed=max(
            0.0,
            served_in_turn(sent, service) - beside - last.compression,
            # Nothing hides what was selected after the backward.
            sum(service(one.size, one.number_format, one.collective, 0) for one in sent if one.selection),
        )
        / told,
        operations=tuple(thread.operations),
        travels=(
            *((one, 1.0) for one in (*sent, *norm, *rows)),
            *((one, 1 / communication.reduce_every) for one in weights),
        ),
    )


def _sent(work: Work, its: Windows, ranks: int, contention: float) -> tuple[tuple[Sent, ...], float]:
    """What leaves beside the last backward, or the whole window, which takes longer by `contention`; and what that takes then."""
    beside = its.last_backward
    if not work.communication.late_gradients:
        beside += contention
        return gradients(work.model, work.data, work.communication, ranks, beside) if ranks > 1 else (), beside
    # Gradients of the window before leave as this one begins; what says of it leaves in its own last backward.
    beside = its.forward + its.backward + contention
    sent = gradients(work.model, work.data, work.communication, ranks, its.last_backward) if ranks > 1 else ()
    return late(sent, beside - its.last_backward), beside


def _averaging(weights: Sequence[Sent], horovod: HorovodsThread, paced: Pace) -> float:
    """Of all ranks' weights, block by block, each waited for: the adapters' `average`."""
    thread = TrainingThread(horovod)
    for block in weights:
        thread.exchange(block)
        thread.work(paced.average(block.size / 4))
    return thread.now


# --- what it is not for ----------------------------------------------------------------------------------


def _check(link: Link, framework: Framework, work: Work, topology: TopologyConfig) -> None:
    if framework != link.framework:
        again = f"measure with --framework {framework}"
        raise ConfigError(f"the link was measured with {link.framework}, and the run is in {framework}: {again}")
    require_predictable(work.communication, topology)


def require_predictable(communication: CommunicationConfig, topology: TopologyConfig) -> None:
    """Raises ConfigError for what the model of communication does not know yet."""
    for given, what in (
        (communication.reduction != "sum", f"--reduction {communication.reduction}"),
        (communication.hierarchical_allreduce, "--hierarchical-allreduce"),
        (communication.autotune, "--autotune"),
    ):
        if given:
            raise ConfigError(f"{what} is not predicted yet: only sums by rings")
    if topology.split:
        require_any_ranks(communication)


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
        "beside communication": found.contention_seconds,
        "compression": found.compression_seconds,
        "exchanges of the model": found.exchange_seconds,
        "exposed communication": found.exposed_seconds,
        "average of weights": found.averaging_seconds,
        "update": found.update_seconds,
        "new rows to all ranks": found.sharing_seconds,
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
