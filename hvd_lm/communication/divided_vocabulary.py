"""``--split vocabulary``, predicted: the ranks of a model group ask each other for rows, and judge the tokens of all together.

What a micro-batch exchanges within its group is waited for, but for statistics and returning gradients, which travel beside a third
of the output's work each (hvd_lm.adapters.*.stages.split_lookup and split_output).
"""

from __future__ import annotations

import math
from dataclasses import replace

from hvd_lm.communication.gradients import Sent, backward_multiplications, distinct_words, gradients
from hvd_lm.communication.link import Link
from hvd_lm.communication.measure import Work
from hvd_lm.communication.parts import Parts, Windows, thread_of
from hvd_lm.communication.ring import CollectiveName
from hvd_lm.communication.simulation import TrainingThread, service_of
from hvd_lm.errors import ConfigError
from hvd_lm.model.cost import tokens_together
from hvd_lm.model.parameters import Parameter
from hvd_lm.model.split import divide
from hvd_lm.model.stages import parameters, stages

_OF_TARGET, _OF_STATISTICS = 8.0, 12.0
"""Bytes of a token's target and weight, and of what a rank says of it."""


def divided_vocabulary(link: Link, work: Work, windows: Windows, copies: int, group: int) -> Parts:
    """A step of `copies` model groups of `group` ranks each."""
    if work.model.softmax == "sampled":
        raise ConfigError("--softmax sampled over a split vocabulary is not predicted yet: all words, or a whole model")
    window = _Window(link, work, windows, copies, group)
    for place, together in enumerate(windows.together):
        for _ in range(together):
            window.forward()
        begun = window.thread.now
        window.backward(together, is_last=place == len(windows.together) - 1)
    ended, waited, last = window.thread.now, window.thread.waited, window.thread.now - begun
    for one in window.sent:
        window.thread.wait(one.name)
    exposed = window.thread.now - ended
    operations = tuple(its for its in window.horovod.operations if its.begun >= begun)
    communication = sum(its.done - its.begun for its in window.horovod.operations)
    return Parts(
        forward=windows.forward,
        backward=windows.backward,
        update=window.share_of_update * windows.compute.update,
        exchange=waited,
        exposed=exposed,
        hidden=max(0.0, communication - exposed - waited),
        communication=communication,
        last_backward=last,
        operations=tuple(replace(its, begun=its.begun - begun, done=its.done - begun) for its in operations),
        travels=tuple(window.travels),
    )


class _Window:
    """A rank's, as it goes on."""

    def __init__(self, link: Link, work: Work, windows: Windows, copies: int, group: int) -> None:
        self._work, self._windows, self._copies, self._group = work, windows, copies, group
        self.horovod = thread_of(link, work, service_of(link, copies * group), copies * group)
        self.thread = TrainingThread(self.horovod)
        self._number_format, self._item = ("float16", 2.0) if work.communication.compression == "fp16" else ("float32", 4.0)
        self.travels: list[tuple[Sent, float]] = []
        self.sent: list[Sent] = []
        """Gradients, and the loss."""
        self._count = 0
        declared, model = stages(work.model), work.model
        costs = list(map(backward_multiplications, declared))
        self._share_of_output = costs[-1] / sum(costs)
        self._held = parameters(model)
        sizes = {name: math.prod(parameter.shape) for name, parameter in self._held.items()}
        own = {name: size / (group if self._is_divided(self._held[name]) else 1) for name, size in sizes.items()}
        self.share_of_update = sum(own.values()) / sum(sizes.values())

    @staticmethod
    def _is_divided(parameter: Parameter) -> bool:
        return parameter.split == "rows"

    def forward(self) -> None:
        """Of a micro-batch."""
        rows = self._asked(1)
        self._exchange("lookup.rows", rows * self._item * self._work.model.embedding_size, "alltoall", self._number_format)
        self.thread.work(self._windows.compute.forward)

    def _asked(self, micro_batches: int) -> float:
        """Ask for the words of so many. Returns their rows, as many as would take each rank as long as they take the busiest."""
        tokens = micro_batches * self._work.data.batch_size * self._work.data.sequence_length
        assert self._work.model.vocabulary_size is not None
        parts = divide(self._work.model.vocabulary_size, self._group)
        words = [distinct_words(self._work.model.vocabulary_size, tokens, part.start, part.stop) for part in parts]
        # A rank sends what it has to all others, and gets what they have.
        busiest = max(max((self._group - 1) * its, sum(words) - its) for its in words)
        rows = busiest * self._group / (self._group - 1)
        self._exchange("lookup.words", 4.0 * rows, "alltoall")
        return rows

    def backward(self, together: int, *, is_last: bool) -> None:
        """Of micro-batches that share one."""
        whole = self._windows.backward_of(together)
        work, data, model = self._work, self._work.data, self._work.model
        tokens = together * data.batch_size * data.sequence_length
        assert model.vocabulary_size is not None
        at_a_time = tokens_together(-(-model.vocabulary_size // self._group), self._group)
        for first in range(0, tokens, at_a_time):
            count = min(at_a_time, tokens - first)
            self._judge(count, whole * self._share_of_output * count / tokens)
        at = whole * self._share_of_output
        if is_last:
            for one in gradients(model, data, work.communication, self._copies * self._group, whole):
                # What is complete at the end of the output is there now; the rest comes as the work goes on.
                self.thread.work(max(0.0, one.ready - at))
                at = max(at, one.ready)
                self._leave(one)
        self.thread.work(whole - at)
        rows = self._asked(together)
        self._exchange("lookup.gradients", rows * self._item * model.embedding_size, "alltoall", self._number_format)
        if is_last:
            self._leave_late()

    def _judge(self, tokens: int, seconds: float) -> None:
        """So many of each rank, the output's work of which takes so long."""
        of_all = float(self._group * tokens)
        activations = of_all * self._item * self._work.model.widths[-1]
        outputs = self._start("outputs", activations, "allgather", self._number_format)
        self._exchange("targets", of_all * _OF_TARGET, "allgather")
        self.thread.wait(outputs.name)
        self.thread.work(seconds / 3)
        statistics = self._start("statistics", of_all * self._group * _OF_STATISTICS, "allgather")
        self.thread.work(seconds / 3)
        self.thread.wait(statistics.name)
        returning = self._start("gradients", activations, "alltoall", self._number_format)
        self.thread.work(seconds / 3)
        self.thread.wait(returning.name)

    # --- what travels ------------------------------------------------------------------------------------

    def _leave(self, one: Sent) -> None:
        """What is complete, to the ranks that hold it."""
        name = one.name.removeprefix("gradient.")
        is_of_words = one.name.startswith("touched_rows") or (name in self._held and self._is_divided(self._held[name]))
        if is_of_words and self._copies == 1:
            return
        if is_of_words:
            one = replace(one, size=one.size / self._group, ranks=self._copies)
        if name in self._held and self._held[name].looked_up:
            self._late = one
            return
        self._send(one)

    _late: Sent | None = None
    """The embedding's, complete when what others looked up has come."""

    def _leave_late(self) -> None:
        if self._late:
            self._send(self._late)

    def _send(self, one: Sent) -> None:
        self.sent.append(one)
        self.travels.append((one, 1.0))
        self.thread.start(one)

    def _start(self, name: str, size: float, collective: CollectiveName, number_format: str = "float32") -> Sent:
        """Within the model group."""
        self._count += 1
        one = Sent(f"{name}.{self._count}", 0.0, size, number_format, collective=collective, ranks=self._group)
        self.travels.append((one, 1.0))
        self.thread.start(one)
        return one

    def _exchange(self, name: str, size: float, collective: CollectiveName, number_format: str = "float32") -> None:
        self.thread.wait(self._start(name, size, collective, number_format).name)
