"""Every setting of a run, as dataclasses; the command line, YAML files and Python share them.

A field's docstring is its help on the command line. `__post_init__` refuses what can never work.
"""

from hvd_lm.config.communication import CommunicationConfig
from hvd_lm.config.data import VALIDATION_SHARE, DataConfig
from hvd_lm.config.model import CELLS, MOST_LAYERS, REFERENCE_VOCABULARY_SIZE, Cell, ModelConfig
from hvd_lm.config.optimizer import OptimizerConfig
from hvd_lm.config.run import FRAMEWORKS, Framework, RunConfig, with_passes, with_vocabulary_size
from hvd_lm.config.target_batch import passes_for, require_target_batch
from hvd_lm.config.topology import Split, TopologyConfig

__all__ = [
    "CELLS",
    "FRAMEWORKS",
    "MOST_LAYERS",
    "REFERENCE_VOCABULARY_SIZE",
    "VALIDATION_SHARE",
    "Cell",
    "CommunicationConfig",
    "DataConfig",
    "Framework",
    "ModelConfig",
    "OptimizerConfig",
    "RunConfig",
    "Split",
    "TopologyConfig",
    "passes_for",
    "require_target_batch",
    "with_passes",
    "with_vocabulary_size",
]
