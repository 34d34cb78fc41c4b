"""The grid of ranks: data-parallel x model-parallel, as groups that become Horovod process sets, and who reads which text.

Ranks of one model group are consecutive (rank = data_rank * M + model_rank), so that the groups that talk most
share a host under the usual placement by slots.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from hvd_lm.config import Split, TopologyConfig
from hvd_lm.errors import ConfigError

GroupName = Literal["all", "data", "model", "readers", "below", "above", "ends"]
"""all: of the job. data: hold the same part of the parameters. model: hold one copy of the parameters together. readers: read
different text, all of it together. In a pipeline, below and above: with the neighbour on that side. ends: the first and the last
ranks of all pipelines, which share a tied embedding."""


@dataclass(frozen=True)
class Topology:
    """Where `rank` stands in a grid of `data_size` x `model_size` ranks."""

    rank: int
    data_size: int
    model_size: int
    split: Split | None = None
    """What is divided among ranks."""

    @property
    def size(self) -> int:
        return self.data_size * self.model_size

    @property
    def data_rank(self) -> int:
        """Which of the `data_size` copies of the parameters this rank holds a part of."""
        return self.rank // self.model_size

    @property
    def model_rank(self) -> int:
        """Which part of the parameters this rank holds."""
        return self.rank % self.model_size

    @property
    def every_rank_reads(self) -> bool:
        """Whether each rank reads text of its own; else the ranks of a model group read the same."""
        return self.split != "layers"

    @property
    def reader(self) -> int:
        """Which of the `readers` parts of the text this rank reads."""
        return self.rank if self.every_rank_reads else self.data_rank

    @property
    def readers(self) -> int:
        """Parts of the text that are read side by side."""
        return self.size if self.every_rank_reads else self.data_size

    @property
    def is_writer(self) -> bool:
        """Only this rank writes files and messages."""
        return self.rank == 0

    def data_groups(self) -> list[list[int]]:
        """Ranks that hold the same parameters and reduce gradients with each other, one list per model rank."""
        return [list(range(m, self.size, self.model_size)) for m in range(self.model_size)]

    def model_groups(self) -> list[list[int]]:
        """Ranks that hold one copy of the parameters together, one list per data rank."""
        return [list(range(d * self.model_size, (d + 1) * self.model_size)) for d in range(self.data_size)]

    def groups(self) -> dict[GroupName, list[int]]:
        """The groups of this rank, each as the ranks in it."""
        everyone, data = list(range(self.size)), self.data_groups()[self.model_rank]
        found: dict[GroupName, list[int]] = {
            "all": everyone,
            "data": data,
            "model": self.model_groups()[self.data_rank],
            "readers": everyone if self.every_rank_reads else data,
        }
        if self.split == "layers":
            is_first, is_last = self.model_rank == 0, self.model_rank == self.model_size - 1
            found["below"] = [self.rank] if is_first else [self.rank - 1, self.rank]
            found["above"] = [self.rank] if is_last else [self.rank, self.rank + 1]
            if is_first or is_last:
                found["ends"] = self.ends()
        return found

    def is_scattered(self, hosts: Sequence[object]) -> bool:
        """Whether a model group reaches over several of `hosts`, one a rank, though each has room for whole groups."""
        fits = all(ranks % self.model_size == 0 for ranks in Counter(hosts).values())
        return fits and any(len({hosts[rank] for rank in group}) > 1 for group in self.model_groups())

    def neighbours(self) -> list[list[int]]:
        """Pairs of ranks that pass activations on to each other; none but in pipelines."""
        if self.split != "layers":
            return []
        return [[rank, rank + 1] for group in self.model_groups() for rank in group[:-1]]

    def ends(self) -> list[int]:
        """The first and the last rank of each pipeline; none but in pipelines."""
        if self.split != "layers":
            return []
        return sorted(rank for group in self.model_groups() for rank in {group[0], group[-1]})


def arrange(config: TopologyConfig, rank: int, size: int) -> Topology:
    """The topology that `config` asks for on `size` ranks.

    Raises ConfigError if data x model is not `size`.
    """
    data = config.data_parallel or size // config.model_parallel
    if data * config.model_parallel != size:
        raise ConfigError(
            f"the topology does not fit {size} rank(s): "
            f"--data-parallel {config.data_parallel or '(ranks / M)'} x --model-parallel {config.model_parallel} must equal {size}"
        )
    return Topology(rank, data, config.model_parallel, config.split)
