"""``hvd-lm sentiment COMMAND``: a classifier of texts, trained, judged and asked."""

from __future__ import annotations

import json
from dataclasses import asdict

from hvd_lm.command_line.flags import parse
from hvd_lm.command_line.task_commands import TaskCommand, run_task
from hvd_lm.job import launcher
from hvd_lm.tasks import classifier, sentiment
from hvd_lm.tasks.classifier import ClassEvaluateConfig, ClassPredictConfig
from hvd_lm.tasks.sentiment import SentimentTrainConfig
from hvd_lm.training.metrics import finite


def run(argv: list[str]) -> int:
    """Run the command that `argv` names. Raises ConfigError for an unknown one."""
    return run_task("sentiment", COMMANDS, argv)


def _train(argv: list[str]) -> None:
    config = parse(SentimentTrainConfig, "sentiment train", argv)
    if config.method == "features":
        found, figures = sentiment.train_features(config)
        if launcher.launched_rank() == 0:
            judged = f"validation accuracy {figures.accuracy:.2%}, " if figures else ""
            units = f"{found.used} of {found.kernel_CU.shape[1]} units are used, most of all unit {found.strongest_unit}"
            print(f"{judged}C = {found.strength:g}; {units}; the classifier is in {config.out}")
        return
    result = sentiment.train(config)
    if launcher.launched_rank() == 0:
        print(result.words)


def _evaluate(argv: list[str]) -> None:
    """Print the figures as one JSON object."""
    figures = classifier.evaluate(parse(ClassEvaluateConfig, "sentiment evaluate", argv))
    if launcher.launched_rank() == 0:
        print(json.dumps(finite(figures.to_dict())))


def _predict(argv: list[str]) -> None:
    """Print label and probability of each text, or a JSON object."""
    config = parse(ClassPredictConfig, "sentiment predict", argv)
    found = classifier.predict(config)
    if launcher.launched_rank() == 0:
        for its in found:
            print(json.dumps(asdict(its)) if config.json else f"{its.label}\t{its.probabilities[its.label]:.6f}")


COMMANDS = {
    "train": TaskCommand("make a classifier of a language model, from texts that have labels", _train, SentimentTrainConfig),
    "evaluate": TaskCommand("accuracy of a classifier, and precision and recall of each label", _evaluate, ClassEvaluateConfig),
    "predict": TaskCommand("the label of each text", _predict, ClassPredictConfig),
}
