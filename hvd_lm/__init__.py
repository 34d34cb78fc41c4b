"""hvd_lm: train LSTM language models on Horovod, in PyTorch or TensorFlow, with one loop.

    import hvd_lm

    config = hvd_lm.RunConfig(framework="torch", steps=100, model=hvd_lm.ModelConfig(hidden_size=256))
    result = hvd_lm.train(config)
    print(hvd_lm.evaluate(result.out, ["other.txt"]).perplexity)
    print("".join(hvd_lm.generate(result.out, "The value of")))

No framework is imported before it is asked for.
"""

from hvd_lm.adapters import adapter
from hvd_lm.compression.compressors import Compressor, PowerSGD
from hvd_lm.compression.selectors import Selector, TopK
from hvd_lm.config import CommunicationConfig, DataConfig, ModelConfig, OptimizerConfig, RunConfig, TopologyConfig
from hvd_lm.data.prepare import PrepareConfig, prepare
from hvd_lm.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    FrameworkError,
    HvdLmError,
    LostWorkerError,
    OutOfMemoryError,
    StoppedError,
    TrainingError,
)
from hvd_lm.evaluation.cache import CacheConfig
from hvd_lm.evaluation.dynamic import DynamicConfig
from hvd_lm.evaluation.figures import Evaluation
from hvd_lm.evaluation.perplexity import evaluate
from hvd_lm.evaluation.score import LineScore, WordScore, score
from hvd_lm.generation.sampling import SamplingConfig
from hvd_lm.generation.text import TextGenerator, generate
from hvd_lm.training.loop import TrainingResult, train

__all__ = [
    "CacheConfig",
    "CheckpointError",
    "CommunicationConfig",
    "Compressor",
    "ConfigError",
    "DataConfig",
    "DataError",
    "DynamicConfig",
    "Evaluation",
    "FrameworkError",
    "HvdLmError",
    "LineScore",
    "LostWorkerError",
    "ModelConfig",
    "OptimizerConfig",
    "OutOfMemoryError",
    "PowerSGD",
    "PrepareConfig",
    "RunConfig",
    "SamplingConfig",
    "Selector",
    "StoppedError",
    "TextGenerator",
    "TopK",
    "TopologyConfig",
    "TrainingError",
    "TrainingResult",
    "WordScore",
    "adapter",
    "evaluate",
    "generate",
    "prepare",
    "score",
    "train",
]
