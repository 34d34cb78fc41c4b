"""Every setting of a run, as dataclasses; the command line, YAML files and Python share them.

A field's docstring is its help on the command line. `__post_init__` refuses what can never work.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from hvd_lm.compression.limits import require_any_ranks, require_local, require_one_way, require_powersgd, require_topk
from hvd_lm.errors import require, require_positive
from hvd_lm.model.clusters import check_clusters
from hvd_lm.paths import at_home, make_paths

Framework = Literal["torch", "tensorflow"]
FRAMEWORKS: tuple[Framework, ...] = ("torch", "tensorflow")
Cell = Literal["lstm", "mlstm"]
CELLS: tuple[Cell, ...] = ("lstm", "mlstm")
Split = Literal["vocabulary", "layers", "optimizer"]

REFERENCE_VOCABULARY_SIZE = 10_000
VALIDATION_SHARE = 0.05
"""Of a text, unless said otherwise."""


MOST_LAYERS = 1000
"""A model is spelled out layer by layer before anything of it is allocated."""


@dataclass(frozen=True)
class ModelConfig:
    """Embedding(V, E) -> LSTM(E -> H, L layers) -> Linear(H, V)."""

    vocabulary_size: int | None = None
    """Rows of the embedding (V). Unless given: 10000, or as many tokens as the text yields if fewer."""
    embedding_size: int = 300
    """Width of an embedding (E)."""
    hidden_size: int | tuple[int, ...] = 1024
    """Units of an LSTM layer (H); several numbers give each layer its own, from below."""
    layers: int | None = None
    """LSTM layers (L). Unless given: 2, or as many as --hidden-size has numbers."""
    cell: Cell = "lstm"
    """What a layer computes. lstm: Hochreiter & Schmidhuber 1997, with forget gates. mlstm: the multiplicative LSTM (Krause et al.
    2016, arXiv:1609.07959), whose recurrent weights depend on the input."""
    projection_size: int | None = None
    """Width that an LSTM layer projects its output to (P), for itself, the layers above and the output (Sak et al. 2014,
    arXiv:1402.1128); at most --hidden-size. None: no projection."""
    dropout: float = 0.0
    """Share of activations dropped on the embedding, between the layers and before the output
    (Zaremba et al. 2014, arXiv:1409.2329). The masks are the same in both frameworks and for any number of ranks."""
    tie_embedding: bool = False
    """Use the embedding as output kernel too (Press & Wolf 2017, arXiv:1608.05859); needs E = H of the last layer."""
    softmax: Literal["full", "sampled", "adaptive"] = "full"
    """What training judges a target against. full: all words. sampled: --sampled-words of them, drawn anew for each micro-batch
    (Jean et al. 2015, arXiv:1412.2007); the loss of training is of these, that of validation always of all words. adaptive: rare
    words in clusters, cut at --adaptive-cutoffs, with narrower weights of their own (Grave et al. 2017, arXiv:1609.04309)."""
    sampled_words: int = 8192
    """Different words that --softmax sampled draws, log-uniformly over a vocabulary in the order of frequency."""
    adaptive_cutoffs: tuple[int, ...] = ()
    """Where --softmax adaptive cuts a vocabulary in the order of frequency: words below the first number are in its head, those
    from each number up to the next, or to the end, are a cluster."""
    adaptive_division: float = 4.0
    """How much narrower the first cluster of --softmax adaptive is than --hidden-size, and each other than the one before."""

    def __post_init__(self) -> None:
        """Brings `hidden_size` and `layers` to one form: a number where all layers are as wide, and how many there are."""
        sizes = self.hidden_size if isinstance(self.hidden_size, (list, tuple)) else (self.hidden_size,)
        require(len(sizes) > 0, "--hidden-size needs at least one number")
        require(all(size >= 1 for size in sizes), f"--hidden-size must be at least 1, not {' '.join(map(str, sizes))}")
        layers = self.layers if self.layers is not None else 2 if len(sizes) == 1 else len(sizes)
        require(layers >= 1, f"--layers must be at least 1, not {layers}")
        require(layers <= MOST_LAYERS, f"--layers must be at most {MOST_LAYERS}, not {layers}")
        require(len(sizes) in (1, layers), f"--hidden-size has {len(sizes)} numbers for --layers {layers}: give one, or one each")
        object.__setattr__(self, "layers", layers)
        object.__setattr__(self, "hidden_size", sizes[0] if len(set(sizes)) == 1 else tuple(sizes))
        require(self.embedding_size >= 1, f"--embedding-size must be at least 1, not {self.embedding_size}")
        require(self.cell in CELLS, f"--cell must be one of {', '.join(CELLS)}, not {self.cell}")
        if self.projection_size is not None:
            require(self.projection_size >= 1, f"--projection-size must be at least 1, not {self.projection_size}")
            require(self.cell == "lstm", f"--projection-size needs --cell lstm, not {self.cell}")
            require(
                self.projection_size <= min(self.units),
                f"--projection-size must be at most --hidden-size, not {self.projection_size} for a layer of {min(self.units)}",
            )
        require(
            self.vocabulary_size is None or self.vocabulary_size >= 2,
            f"--vocabulary-size must be at least 2 (<unk> and <eos>), not {self.vocabulary_size}",
        )
        require(0.0 <= self.dropout <= 0.99, f"--dropout must be in [0, 0.99], not {self.dropout}")
        require(self.softmax in ("full", "sampled", "adaptive"), f"--softmax must be full, sampled or adaptive, not {self.softmax}")
        require(self.sampled_words >= 1, f"--sampled-words must be at least 1, not {self.sampled_words}")
        require(
            self.softmax != "sampled" or self.vocabulary_size is None or self.sampled_words < self.vocabulary_size,
            f"--sampled-words {self.sampled_words} is not below the vocabulary of {self.vocabulary_size} words: take fewer, or "
            "--softmax full",
        )
        above = "projection" if self.projection_size else "hidden"
        require(
            not self.tie_embedding or self.embedding_size == self.widths[-1],
            f"--tie-embedding needs --embedding-size equal to --{above}-size (of the last layer), not {self.embedding_size} and "
            f"{self.widths[-1]}",
        )
        object.__setattr__(self, "adaptive_cutoffs", tuple(self.adaptive_cutoffs))
        if self.softmax == "adaptive":
            require(not self.tie_embedding, "--tie-embedding does not go with --softmax adaptive: its clusters are narrower")
            check_clusters(self.widths[-1], self.adaptive_cutoffs, self.adaptive_division, self.vocabulary_size)

    @property
    def units(self) -> tuple[int, ...]:
        """Of each layer, from below."""
        assert self.layers is not None
        return self.hidden_size if isinstance(self.hidden_size, tuple) else (self.hidden_size,) * self.layers

    @property
    def widths(self) -> tuple[int, ...]:
        """Of what each layer gives to the one above, from below."""
        return self.units if self.projection_size is None else (self.projection_size,) * len(self.units)


@dataclass(frozen=True)
class DataConfig:
    """What is read, and how it is cut into micro-batches."""

    data: tuple[Path, ...] = ()
    """A folder that hvd-lm prepare made, or UTF-8 texts to train on, one after the other (files, also compressed, folders,
    globs). None: English prose that ships with Python (pydoc_data.topics)."""
    validation_data: tuple[Path, ...] = ()
    """Texts to validate on. None: the validation split of a prepared folder, or the last part of the training text
    (see --validation-share)."""
    validation_share: float | None = None
    """Share of the text, at its end, kept for validation unless --validation-data is given; 0 for no validation. Unless given:
    0.05, or the validation split of a prepared folder."""
    validation_cut: Literal["lines", "tokens"] = "lines"
    """Where a plain text is cut for validation. lines: at the end of a line, before words are counted, as hvd-lm prepare does.
    tokens: anywhere, with the words of both parts in the vocabulary; for going on with runs that began so."""
    batch_size: int = 8
    """Sequences in a micro-batch of one rank (B)."""
    sequence_length: int = 32
    """Tokens in a sequence of a micro-batch (T): how far gradients flow back in time."""

    def __post_init__(self) -> None:
        make_paths(self, "data", "validation_data")
        for name in ("batch_size", "sequence_length"):
            require(getattr(self, name) >= 1, f"--{name.replace('_', '-')} must be at least 1, not {getattr(self, name)}")
        require(
            self.validation_share is None or 0.0 <= self.validation_share < 1.0,
            f"--validation-share must be in [0, 1), not {self.validation_share}",
        )


@dataclass(frozen=True)
class OptimizerConfig:
    """The update of an optimizer step."""

    optimizer: Literal["adam", "sgd", "adagrad"] = "adam"
    """Adam (Kingma & Ba 2015, arXiv:1412.6980, with bias correction and epsilon outside of it as in Algorithm 1),
    SGD with --momentum, or Adagrad (Duchi et al. 2011) with --initial-accumulator and no epsilon."""
    learning_rate: float = 1e-3
    """Peak learning rate, before --learning-rate-scaling."""
    learning_rate_scaling: Literal["none", "linear", "sqrt"] = "none"
    """How the rate grows with the sequences in an optimizer step (ranks x batch size x backward passes), relative to
    --base-batch-size: linear is the rule of Goyal et al. 2017 (arXiv:1706.02677)."""
    base_batch_size: int = 80
    """Sequences in an optimizer step for which --learning-rate holds."""
    warmup_steps: int = 0
    """Optimizer steps over which the rate rises linearly to its peak."""
    decay: Literal["constant", "linear", "cosine", "exponential"] = "constant"
    """Course of the rate from the end of the warm-up to the last step."""
    final_learning_rate_fraction: float = 0.1
    """Rate at the last step, relative to the peak, unless --decay is constant."""
    clip: float | None = 1.0
    """Largest global norm of the gradient; applied after the reduction. None: no clipping."""
    beta1: float = 0.9
    """Adam: decay of the first moment."""
    beta2: float = 0.999
    """Adam: decay of the second moment."""
    epsilon: float = 1e-8
    """Adam: added to the square root of the bias-corrected second moment."""
    momentum: float = 0.0
    """SGD: momentum."""
    initial_accumulator: float = 0.1
    """Adagrad: what the sum of squared gradients begins with, as TensorFlow's does (PyTorch's with 0, and an epsilon)."""

    def __post_init__(self) -> None:
        require_positive(self, "learning_rate", "epsilon", "initial_accumulator")
        require(self.base_batch_size >= 1, f"--base-batch-size must be at least 1, not {self.base_batch_size}")
        require(self.warmup_steps >= 0, f"--warmup-steps must not be negative, not {self.warmup_steps}")
        require(self.clip is None or self.clip > 0, f"--clip must be above 0 (or None), not {self.clip}")
        require(
            0 < self.final_learning_rate_fraction <= 1,
            f"--final-learning-rate-fraction must be in (0, 1], not {self.final_learning_rate_fraction}",
        )
        for name in ("beta1", "beta2", "momentum"):
            require(0 <= getattr(self, name) < 1, f"--{name} must be in [0, 1), not {getattr(self, name)}")

    @property
    def moments(self) -> tuple[str, ...]:
        """What the update remembers of each weight, beside it."""
        if self.optimizer == "adam":
            return ("first", "second")
        if self.optimizer == "adagrad":
            return ("accumulator",)
        return ("momentum",) if self.momentum else ()

    @property
    def initial_moment(self) -> float:
        """What every value of the moments is before the first step."""
        return self.initial_accumulator if self.optimizer == "adagrad" else 0.0

    @property
    def keeps_absent_rows(self) -> bool:
        """Whether a row without a gradient stays as it is, moments too: then the rows that a window touched are all to update."""
        return self.optimizer == "adagrad"


@dataclass(frozen=True)
class CommunicationConfig:
    """How gradients travel. Levers that Horovod reads from its environment are left alone unless set here;
    what horovodrun was told wins over both."""

    backward_passes_per_step: int = 10
    """Micro-batches accumulated on a rank before one reduction and one optimizer step (N)."""
    compression: Literal["none", "fp16", "powersgd", "topk"] = "none"
    """What travels of gradients. none: they, as float32. fp16: as halves. powersgd: matrices as products of two narrow ones
    (Vogels et al. 2019, arXiv:1905.13727). topk: of matrices the largest values of each rank (Lin et al. 2018, arXiv:1712.01887).
    The last two are algorithms of their own; what is not sent is kept for the next step."""
    powersgd_rank: int = 4
    """powersgd: columns of the two matrices. More send more, and are nearer to the gradient."""
    powersgd_start_steps: int = 100
    """powersgd: optimizer steps at the beginning of a run that send gradients as they are."""
    powersgd_halves: bool = False
    """powersgd: send the two matrices as halves; what is rounded off the second is kept for the next step."""
    topk_share: float = 0.001
    """topk: of the values of a matrix, the share that a rank sends. From a half on all of them travel."""
    topk_momentum: float = 0.0
    """topk: momentum of what is kept, where each rank has its own, in place of --momentum; for --optimizer sgd."""
    topk_start_steps: int = 100
    """topk: optimizer steps at the beginning of a run that send more: first a quarter, at last 0.004."""
    reduce_every: int = 1
    """Optimizer steps that each rank makes by itself before their weights are averaged (local SGD, Stich 2019, arXiv:1805.09767),
    an algorithm of its own. 1: all ranks make every step together."""
    reduce_start_steps: int = 0
    """--reduce-every above 1: optimizer steps at the beginning of a run that are made together."""
    late_gradients: bool = False
    """Apply each gradient one optimizer step late, so that its reduction hides behind the next window (Pipe-SGD, Li et al. 2018,
    arXiv:1811.03619), an algorithm of its own."""
    reduction: Literal["sum", "adasum"] = "sum"
    """sum: exact mean gradient over the window. adasum: Horovod's adaptive summation (Maleki et al. 2020,
    arXiv:2006.02924), an algorithm of its own; needs MPI or NCCL, 2^k ranks, and --compression none."""
    loss_scale: float | None = None
    """fp16: factor on the loss, to begin with, that keeps small gradients from vanishing on the wire. Unless given: 8192, or where
    the run was that --resume goes on with."""
    loss_scale_growth_steps: int = 2000
    """fp16: steps without overflow after which the loss scale doubles; it halves at an overflow."""
    gradient_predivide_factor: float = 1.0
    """Divide gradients by this before their sum over the ranks, and multiply after it: room for fp16 sums."""
    fusion_threshold_mb: int | None = None
    """Size of the buffer in which Horovod joins small tensors; with 0 sums are repeatable, bit for bit. Unless given: 0, or what
    autotune finds (HOROVOD_FUSION_THRESHOLD)."""
    backward_tokens: int = 1024
    """Micro-batches of a rank, up to so many tokens together, share one backward that goes layer by layer: the upper layers'
    gradients then travel beside the lower layers' backward. More take memory for their activations."""
    cycle_time_ms: float | None = None
    """Pause between Horovod's negotiation cycles (HOROVOD_CYCLE_TIME)."""
    autotune: bool = False
    """Let Horovod search fusion threshold and cycle time while training (HOROVOD_AUTOTUNE)."""
    timeline_filename: Path | None = None
    """File for Horovod's timeline, readable in chrome://tracing (HOROVOD_TIMELINE)."""
    hierarchical_allreduce: bool = False
    """Reduce inside each host first; NCCL with MPI only (HOROVOD_HIERARCHICAL_ALLREDUCE)."""
    stall_shutdown_seconds: int = 600
    """End the job when a rank has kept the others waiting that long, from the start on; 0 for never
    (HOROVOD_STALL_SHUTDOWN_TIME_SECONDS)."""

    def __post_init__(self) -> None:
        make_paths(self, "timeline_filename")
        require(
            self.backward_passes_per_step >= 1,
            f"--backward-passes-per-step must be at least 1, not {self.backward_passes_per_step}",
        )
        require_positive(self, "loss_scale", "gradient_predivide_factor")
        require_powersgd(self.powersgd_rank, self.powersgd_start_steps)
        require_topk(self.topk_share, self.topk_momentum, self.topk_start_steps)
        require_local(self.reduce_every, self.reduce_start_steps)
        require(
            self.loss_scale_growth_steps >= 1, f"--loss-scale-growth-steps must be at least 1, not {self.loss_scale_growth_steps}"
        )
        require(
            self.fusion_threshold_mb is None or self.fusion_threshold_mb >= 0,
            f"--fusion-threshold-mb must not be negative, not {self.fusion_threshold_mb}",
        )
        require(self.backward_tokens >= 0, f"--backward-tokens must not be negative, not {self.backward_tokens}")
        require(self.cycle_time_ms is None or self.cycle_time_ms > 0, f"--cycle-time-ms must be above 0, not {self.cycle_time_ms}")
        require(self.stall_shutdown_seconds >= 0, "--stall-shutdown-seconds must not be negative")
        require_one_way(self)

    def is_local(self, applied_steps: int) -> bool:
        """Whether the optimizer step after so many is each rank's own."""
        return self.reduce_every > 1 and applied_steps >= self.reduce_start_steps


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


@dataclass(frozen=True)
class RunConfig:
    """Train an LSTM language model, alone or on every rank of a horovodrun job."""

    framework: Framework = "torch"
    """Which framework computes."""
    out: Path = Path("run")
    """Folder for the resolved configuration, metrics, TensorBoard files and checkpoints."""
    steps: int | None = None
    """Optimizer steps to train for."""
    epochs: int | None = None
    """Passes over the text to train for. With --steps too, the shorter one holds; with neither, one pass."""
    seed: int = 1
    """Seed of the initial weights, of dropout and of sampled words."""
    threads: int | None = None
    """Compute threads of a rank. Unless given: the cores of the machine shared by its ranks."""
    validation_every: int | None = None
    """Optimizer steps between validations. Unless given: at the end of each epoch and of the run."""
    max_hours: float | None = None
    """Stop after so many hours, with a checkpoint that --resume auto goes on with, and exit code 5."""
    checkpoint_every: int | None = None
    """Optimizer steps between checkpoints. Unless given: at the end of each epoch and of the run."""
    keep_checkpoints: int = 2
    """How many checkpoints to keep: the newest ones, and the one with the lowest validation loss besides."""
    resume: str | None = None
    """Go on with an earlier run: auto for the newest checkpoint in --out (none there: begin), or the folder of a run or of
    a checkpoint. --steps and --epochs are the totals of the run. Ranks, batch size and framework may change."""
    elastic: bool = False
    """Go on when workers come or go, without a restart: under horovodrun --min-np A --max-np B --host-discovery-script SCRIPT."""
    deterministic: bool = False
    """Make every sum repeatable, bit for bit: deterministic kernels, and no fusion unless --fusion-threshold-mb is given."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    communication: CommunicationConfig = field(default_factory=CommunicationConfig)
    topology: TopologyConfig = field(default_factory=TopologyConfig)

    def __post_init__(self) -> None:
        make_paths(self, "out")
        if self.resume is not None and self.resume.startswith("~"):
            object.__setattr__(self, "resume", str(at_home(Path(self.resume), "--resume")))
        require(self.framework in FRAMEWORKS, f"--framework must be one of {', '.join(FRAMEWORKS)}, not {self.framework}")
        for name in ("steps", "epochs", "threads", "validation_every", "checkpoint_every", "keep_checkpoints"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"--{name.replace('_', '-')} must be at least 1, not {value}")
        require_positive(self, "max_hours")
        require(self.resume != "", "--resume needs auto or a folder")
        require(
            not self.elastic or (self.topology.split is None and self.topology.data_parallel is None),
            "--elastic needs a whole model on every worker, and any number of them: use it without --split, --model-parallel and "
            "--data-parallel",
        )
        require(
            not self.elastic or self.communication.reduction != "adasum",
            "--reduction adasum needs 2, 4, 8, ... ranks: use it without --elastic",
        )
        if self.topology.split is not None or self.elastic:
            require_any_ranks(self.communication)
        require(
            not self.communication.late_gradients or self.optimizer.optimizer != "adagrad",
            "--late-gradients goes with --optimizer adam or sgd: adagrad updates the rows of one window",
        )
        require(self.seed >= 0, f"--seed must not be negative, not {self.seed}")


def with_vocabulary_size(config: RunConfig, size: int) -> RunConfig:
    """`config` with the vocabulary size that the text has decided."""
    return replace(config, model=replace(config.model, vocabulary_size=size))
