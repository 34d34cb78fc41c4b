"""``hvd-lm sentiment train``: the sentiment of a text, or any other label of it, by a model that began as a language model.

The language model's embedding and cells are the start of a classifier, which a new output layer completes; all of it is trained by
the loop that trains language models (Dai & Le 2015, "Semi-supervised Sequence Learning", arXiv:1511.01432). Or the language model
stays as it is, and a logistic regression reads its states (hvd_lm.tasks.state_features).

Shapes: N texts, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from hvd_lm import checkpoint as checkpoints
from hvd_lm.adapters.base import Adapter
from hvd_lm.checkpoint import save
from hvd_lm.checkpoint.files import new_folder
from hvd_lm.config import DataConfig
from hvd_lm.data.examples import Examples
from hvd_lm.data.labelled import Columns, LabelledText, read_labelled
from hvd_lm.errors import require
from hvd_lm.evaluation.endings import of_every_text
from hvd_lm.evaluation.figures import Evaluation
from hvd_lm.job.agreement import settings
from hvd_lm.model.stages import state_size
from hvd_lm.paths import make_paths
from hvd_lm.tasks.class_figures import ClassFigures, class_figures
from hvd_lm.tasks.classifier import READ_TOGETHER, log_softmax
from hvd_lm.tasks.example_run import ExampleRun
from hvd_lm.tasks.held_apart import training_and_validation
from hvd_lm.tasks.labels import MOST_TOKENS, classes_of, examples, numbers_of, token_ids
from hvd_lm.tasks.reading import reading
from hvd_lm.tasks.state_features import DESCRIPTION, Regression, features, fitted, unit_png
from hvd_lm.tasks.state_features import save as save_regression
from hvd_lm.training.example_dataset import ExampleDataset
from hvd_lm.training.loop import TrainingResult, train_on

_OF_A_RANK = ("checkpoint", "data", "validation_data", "threads", "out")
"""Settings that may differ between ranks; model and texts may not."""


@dataclass(frozen=True)
class SentimentTrainConfig(ExampleRun):
    """Train a classifier of texts, which begins as a language model, alone or on every rank of a horovodrun job."""

    checkpoint: Path
    """The language model: folder of a training run (its newest checkpoint), or of one checkpoint."""
    data: tuple[Path, ...]
    """Texts and their labels: .tsv, .csv or .jsonl files, or folders that hold a folder of texts for each label."""
    validation_data: tuple[Path, ...] = ()
    """The same to validate on. None: a part of --data, see --validation-share."""
    validation_share: float = 0.1
    """Share of the texts, drawn by chance, kept for validation unless --validation-data is given; 0 for none."""
    text_column: str = "text"
    """Column of the text: its name, or its number from 1 in rows that have no header."""
    label_column: str = "label"
    """Column of the label, as --text-column."""
    out: Path = field(default=Path("sentiment"), kw_only=True)
    """Folder of the run, as of hvd-lm train."""
    method: Literal["finetune", "features"] = "finetune"
    """finetune: the language model and a new output layer learn the labels (Dai & Le 2015, arXiv:1511.01432). features: the model
    stays as it is; a logistic regression with an L1 penalty reads its last cell state (Radford et al. 2017, arXiv:1704.01444),
    and of all that a run is told only --batch-size, --sequence-length and --threads count."""
    sequence_length: int = MOST_TOKENS
    """Most tokens of a text (T): of a longer one the last are read."""
    labels_everywhere: bool = False
    """Let the model say the label after every token while it trains, not only after the last."""
    dropout: float = 0.5
    """Share of activations dropped on the embedding, between the layers and before the output."""

    def __post_init__(self) -> None:
        super().__post_init__()
        make_paths(self, "checkpoint", "data", "validation_data")
        require(bool(self.data), "--data needs texts with labels")
        require(0.0 <= self.validation_share < 1.0, f"--validation-share must be in [0, 1), not {self.validation_share}")
        require(self.sequence_length >= 2, f"--sequence-length must be at least 2, not {self.sequence_length}")


@dataclass(frozen=True)
class _Read:
    """What is learned from."""

    classes: tuple[str, ...]
    training: Sequence[LabelledText]
    validation: Sequence[LabelledText]


def train(config: SentimentTrainConfig) -> TrainingResult:
    """Train a classifier as --method finetune does; rank 0 writes the run. Collective.

    Raises what `hvd_lm.train` raises; DataError for texts or labels that are missing or damaged, or of one class only.
    """
    read, language_model = _read(config), checkpoints.mapped(config.checkpoint)
    model = replace(
        language_model.model.without_noise(),
        classes=read.classes,
        dropout=config.dropout,
        softmax="full",
        tie_embedding=False,
        adaptive_cutoffs=(),
    )
    of_model = read.classes, language_model.tokenizer, config.sequence_length
    learned = examples(read.training, *of_model, everywhere=config.labels_everywhere)
    held_out = examples(read.validation, *of_model)
    dataset = ExampleDataset(language_model.tokenizer, learned, {"validation": held_out}, judged)
    data = DataConfig(config.data, config.validation_data, batch_size=config.batch_size, sequence_length=config.sequence_length)
    return train_on(lambda _: dataset, config.run_config(model, data, config.checkpoint))


def train_features(config: SentimentTrainConfig) -> tuple[Regression, ClassFigures | None]:
    """Train a classifier as --method features does, and judge it by what validates; rank 0 writes it. Collective.

    Raises as `train`; FrameworkError if scikit-learn is absent; ConfigError if there is something in ``config.out``.
    """
    read, language_model = _read(config), checkpoints.load_model(config.checkpoint)
    parts, most = [read.training, read.validation], config.sequence_length
    # A language model forgets at the end of a line what it has read.
    inputs = [[token_ids(text.text, language_model.tokenizer, most, ended=False) for text in part] for part in parts]
    numbers = [numbers_of(part, read.classes) for part in parts]
    common = settings(config, without=_OF_A_RANK)
    with reading(config.framework, config.threads, language_model, [*inputs[0], *inputs[1]], common) as adapter:
        job, units = adapter.job, state_size(language_model.model)
        training_NU, validation_NU = (of_every_text(adapter, part, config.batch_size, most, units, features) for part in inputs)
        job.agree()
        found: Regression | None = None
        with job.trouble.noted():
            if job.topology.is_writer:
                found = fitted(read.classes, training_NU, numbers[0], validation_NU, numbers[1], most)
                with new_folder(config.out, DESCRIPTION) as staging:
                    save(language_model, staging, keep=1)
                    save_regression(found, staging)
                    unit = found.strongest_unit
                    (staging / "unit.png").write_bytes(unit_png(read.classes, unit, training_NU[:, unit], numbers[0]))
        job.agree()
        regression: Regression = job.broadcast(found)
    if not len(validation_NU):
        return regression, None
    log_probabilities_NC = log_softmax(regression.of_features(validation_NU))
    return regression, class_figures(read.classes, log_probabilities_NC, numbers[1])


def _read(config: SentimentTrainConfig) -> _Read:
    columns = Columns(config.text_column, config.label_column)
    texts = read_labelled(config.data, columns)
    validating = read_labelled(config.validation_data, columns) if config.validation_data else None
    training, validation = training_and_validation(texts, validating, config.validation_share, "text")
    return _Read(classes_of(training), training, validation)


def judged(adapter: Adapter, texts: Examples) -> Evaluation:
    """Loss and accuracy of examples whose last target is a class. Collective."""
    last = texts.starts[1:] - 1
    inputs = [texts.inputs(index) for index in range(len(texts))]
    classes = adapter.model.classes
    longest = max(map(len, inputs))
    found_NC = of_every_text(adapter, inputs, READ_TOGETHER, longest, len(classes), lambda of: log_softmax(of.logits_BV))
    figures = class_figures(classes, found_NC, texts.targets_N[last])
    return Evaluation(figures.loss, len(texts), accuracy=figures.accuracy)
