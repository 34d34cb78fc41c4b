"""The model: sizes, cell, dropout, softmax."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from hvd_lm.errors import require, require_positive
from hvd_lm.model.clusters import check_clusters

Cell = Literal["lstm", "mlstm"]
CELLS: tuple[Cell, ...] = ("lstm", "mlstm")

REFERENCE_VOCABULARY_SIZE = 10_000
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
    initial_range: float | None = None
    """Initial kernels are uniform in +- this, and biases 0. Unless given: 0.1 for embedding and output, and 1/sqrt(H) in a layer,
    its bias too."""
    forget_bias: float = 0.0
    """Added to the initial bias of the forget gates (Jozefowicz et al. 2015 take 1)."""
    dropout: float = 0.0
    """Share of activations dropped on the embedding, between the layers and before the output
    (Zaremba et al. 2014, arXiv:1409.2329). The masks are the same in both frameworks and for any number of ranks."""
    locked_dropout: bool = False
    """Drop the same activations at all steps of a sequence of a micro-batch (Gal & Ghahramani 2016, arXiv:1512.05287)."""
    input_dropout: float | None = None
    """Share of activations dropped on the embedding. Unless given: --dropout."""
    output_dropout: float | None = None
    """Share of activations dropped before the output. Unless given: --dropout."""
    embedding_dropout: float = 0.0
    """Share of the words whose embedding is zero wherever it is looked up, for a whole optimizer step on all ranks
    (Gal & Ghahramani 2016, arXiv:1512.05287)."""
    weight_dropout: float = 0.0
    """Share of each recurrent kernel's weights dropped for a whole optimizer step on all ranks (DropConnect, Wan et al. 2013; in
    LSTMs Merity et al. 2017, arXiv:1708.02182)."""
    weight_normalization: bool = False
    """Train the lengths of the rows of an mlstm cell's kernels apart from their directions (Salimans & Kingma 2016,
    arXiv:1602.07868)."""
    activation_penalty: float = 0.0
    """Times the mean square of what goes to the output, after dropout: added to what training minimizes, not to the loss that it
    tells (AR, Merity et al. 2017, arXiv:1708.01009)."""
    temporal_penalty: float = 0.0
    """Times the mean square of how much what goes to the output, before dropout, changes from token to token of a micro-batch:
    added in the same way (TAR)."""
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

    classes: tuple[str, ...] = ()
    """Names of what the model tells apart, in place of words: set by hvd-lm sentiment train. None: a language model."""
    source_end: int | None = None
    """Token that ends the sentence which the model translates: set by hvd-lm translate train, as are the next two. None: a language
    model."""
    source_reversed: bool = False
    """Whether the model reads a sentence that it translates from its end (Sutskever et al. 2014, arXiv:1409.3215)."""
    source_attention: bool = False
    """Whether a translation attends to the states of its source (Luong et al. 2015, arXiv:1508.04025)."""

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
        require_positive(self, "initial_range")
        require(math.isfinite(self.forget_bias), f"--forget-bias must be a number, not {self.forget_bias}")
        for name in ("dropout", "input_dropout", "output_dropout", "embedding_dropout", "weight_dropout"):
            rate = getattr(self, name)
            require(rate is None or 0.0 <= rate <= 0.99, f"--{name.replace('_', '-')} must be in [0, 0.99], not {rate}")
        require(
            not self.weight_normalization or (self.cell == "mlstm" and not self.weight_dropout),
            "--weight-normalization needs --cell mlstm, and no --weight-dropout",
        )
        for name in ("activation_penalty", "temporal_penalty"):
            penalty = getattr(self, name)
            flag = f"--{name.replace('_', '-')}"
            require(math.isfinite(penalty) and penalty >= 0, f"{flag} must be a number and at least 0, not {penalty}")
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
        object.__setattr__(self, "classes", tuple(self.classes))
        if self.classes:
            require(len(self.classes) > 1, f"--classes needs at least 2 names, not only {self.classes[0]}")
            require(len(set(self.classes)) == len(self.classes), f"--classes names one twice: {' '.join(self.classes)}")
            require(
                self.softmax == "full" and not self.tie_embedding, "--classes goes with --softmax full, without --tie-embedding"
            )
        require(
            self.source_end is not None or not (self.source_reversed or self.source_attention),
            "--source-reversed and --source-attention are of models that translate: hvd-lm translate train sets them",
        )
        require(self.source_end is None or not self.classes, "a model translates, or it tells --classes apart")
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

    @property
    def dropout_rates(self) -> tuple[float, ...]:
        """Shares of activations dropped, from below: on the embedding, and on what each layer gives."""
        of_input, of_output = (self.dropout if rate is None else rate for rate in (self.input_dropout, self.output_dropout))
        return (of_input, *(self.dropout,) * (len(self.units) - 1), of_output)

    def without_noise(self) -> ModelConfig:
        """The same model where nothing drops, and nothing is penalized."""
        of_places = replace(self, dropout=0.0, locked_dropout=False, input_dropout=None, output_dropout=None)
        return replace(of_places, embedding_dropout=0.0, weight_dropout=0.0, activation_penalty=0.0, temporal_penalty=0.0)
