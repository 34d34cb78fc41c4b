"""A window under PowerSGD or top-k: what compression takes of a rank's time, and messages that wait for it, or for each other.

The thread that trains compresses, too: as the adapters do it, it looks for sums that are back whenever another gradient is
complete, and takes the gradients in the order in which they left when the backward is done.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hvd_lm.communication.gradients import Selection, Sent
from hvd_lm.communication.link import Compute
from hvd_lm.communication.simulation import HorovodsThread, TrainingThread
from hvd_lm.config import ModelConfig, OptimizerConfig
from hvd_lm.model.pipeline import multiplications
from hvd_lm.model.stages import parameters, stages

_SECOND = ".second"
_SELECTING = 20
"""Passes over values of which some are selected: the norm, what was kept, sizes, and three to find what reaches a threshold."""
_WITH_MOMENTUM = 5
"""More of them."""
_SORTED, _SCATTERED = 600, 15
"""Passes that a value takes to be sorted, and to be added at its place. All four were seen in PyTorch on one core (docs)."""
_NARROW = 2.0
"""Products with a few columns take so many times as long for a multiplication as those of the model: seen at ranks 4 to 32."""


@dataclass(frozen=True)
class Pace:
    """How fast a rank goes through gradients, in seconds a value."""

    one_pass: float
    """To read, or write, a value once in memory."""
    multiplication: float
    """With one more value, in a product of few columns."""

    def compress(self, values: float, rank: int) -> float:
        """What was kept and the gradient become one (three passes), and P is made of it."""
        return values * (4 * self.one_pass + rank * self.multiplication)

    def combine(self, values: float, rank: int) -> float:
        """Q is made; that the columns of P are made orthonormal is left out."""
        return values * (self.one_pass + rank * self.multiplication)

    def decompress(self, values: float, rank: int) -> float:
        """The gradient is written, and what was sent is taken from what is kept."""
        return values * (3 * self.one_pass + 2 * rank * self.multiplication)

    def select(self, its: Selection) -> float:
        """What was kept and the gradients become one, and the largest values are taken out of it."""
        passes = _SELECTING + (_WITH_MOMENTUM if its.has_momentum else 0)
        return self.one_pass * (passes * its.values + _SORTED * its.sorted)

    def scatter(self, its: Selection) -> float:
        """Those of all ranks are summed, in gradients that are zero elsewhere."""
        return self.one_pass * (its.values + _SCATTERED * its.received)

    def cast(self, values: float) -> float:
        """To halves, or back (three passes: it is the cast itself that takes its time)."""
        return 3 * self.one_pass * values

    def average(self, values: float) -> float:
        """Weights are copied for Horovod, and what it gives is divided and put in their place (eight passes)."""
        return 8 * self.one_pass * values


def pace(compute: Compute, model: ModelConfig, optimizer: OptimizerConfig) -> Pace:
    """Told from what was timed: a pass from the update, which memory limits, a multiplication from forward and backward.

    The update reads each gradient for its norm, scales it (two passes), then reads it and reads and writes weight and moments.
    """
    values = sum(math.prod(parameter.shape) for parameter in parameters(model).values())
    passes = 6 + 2 * len(optimizer.moments)
    # A weight and a token have three: in the forward, by the inputs and by the weight.
    products = 3 * compute.batch_size * compute.sequence_length * sum(map(multiplications, stages(model)))
    seconds = compute.forward + compute.backward + compute.backward_base / compute.together
    return Pace(compute.update / (passes * values), _NARROW * seconds / products)


@dataclass(frozen=True)
class Window:
    """The last backward, and what follows until all gradients are there."""

    end: float
    """Seconds since it began."""
    compression: float
    """Seconds of them that the rank compresses and decompresses."""


class _Trainer(TrainingThread):
    """It compresses, too."""

    def __init__(self, thread: HorovodsThread, pace: Pace, rank: int) -> None:
        super().__init__(thread)
        self._pace, self._rank = pace, rank
        self._second: set[str] = set()
        self.compression = 0.0

    def complete(self, tensor: Sent) -> None:
        """What `tensor` stands for is."""
        if tensor.second:
            self._compress(self._pace.compress(tensor.compressed, self._rank))
        if tensor.cast:
            self._compress(self._pace.cast(tensor.cast))
        if tensor.selection:
            self._compress(self._pace.select(tensor.selection))
        self.start(tensor)

    def poll(self, tensor: Sent) -> None:
        """Send its second message if the sum of the first is there."""
        # What becomes ready now may join a turn that begins now.
        while self._horovod.next_turn < self.now:
            self._horovod.take_turn()
        if tensor.second and tensor.name not in self._second and self.done.get(tensor.name, math.inf) <= self.now:
            self._send_second(tensor)

    def arrive(self, tensor: Sent) -> None:
        """Wait for it."""
        self.wait(tensor.name)
        if tensor.second:
            if tensor.name not in self._second:
                self._send_second(tensor)
            self.wait(tensor.name + _SECOND)
            self._compress(self._pace.decompress(tensor.compressed, self._rank))
        if tensor.cast:
            self._compress(self._pace.cast(tensor.cast))
        if tensor.selection:
            self._compress(self._pace.scatter(tensor.selection))

    def _send_second(self, tensor: Sent) -> None:
        self._compress(self._pace.combine(tensor.compressed, self._rank))
        self._second.add(tensor.name)
        self.start(Sent(tensor.name + _SECOND, self.now, tensor.second, tensor.number_format))

    def _compress(self, seconds: float) -> None:
        self.work(seconds)
        self.compression += seconds


def simulate_compressed(tensors: Sequence[Sent], thread: HorovodsThread, pace: Pace, rank: int, backward: float) -> Window:
    """A window whose last backward takes `backward` seconds beside compression; its operations are `thread`'s."""
    trainer = _Trainer(thread, pace, rank)
    pending: list[Sent] = []
    for tensor in sorted(tensors, key=lambda tensor: tensor.ready):
        trainer.now = tensor.ready + trainer.compression
        for earlier in pending:
            trainer.poll(earlier)
        trainer.complete(tensor)
        pending.append(tensor)
    trainer.now = backward + trainer.compression
    for place, tensor in enumerate(pending):
        for later in pending[place:]:
            trainer.poll(later)
        trainer.arrive(tensor)
    return Window(trainer.now, trainer.compression)
