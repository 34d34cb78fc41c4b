"""How the ranks are arranged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hvd_lm.errors import require

Split = Literal["vocabulary", "layers", "optimizer"]


@dataclass(frozen=True)
class TopologyConfig:
    """How the ranks are arranged: data-parallel x model-parallel = all ranks."""

    data_parallel: int | None = None
    """Groups that read different text (D). Unless given: ranks / --model-parallel."""
    model_parallel: int = 1
    """Ranks that share one copy of the parameters (M)."""
    split: Split | None = None
    """What ranks divide among them. vocabulary: the M ranks of a model group hold a part of the rows of embedding and output layer
    each, and every rank reads text of its own. layers: a pipeline of M ranks passes the activations of one text on
    from layer to layer. optimizer: each data rank updates a part of the rows of every parameter for all, and
    has the moments of these alone (with M = 1). Unless given: vocabulary where M is above 1, else nothing."""

    def __post_init__(self) -> None:
        require(
            self.data_parallel is None or self.data_parallel >= 1, f"--data-parallel must be at least 1, not {self.data_parallel}"
        )
        require(self.model_parallel >= 1, f"--model-parallel must be at least 1, not {self.model_parallel}")
        if self.split is None and self.model_parallel > 1:
            object.__setattr__(self, "split", "vocabulary")
        require(
            self.split is None or (self.split == "optimizer") == (self.model_parallel == 1),
            f"--split {self.split} does not go with --model-parallel {self.model_parallel}: vocabulary and layers are divided over "
            "2 model ranks or more, the optimizer over the data ranks (--model-parallel 1)",
        )
