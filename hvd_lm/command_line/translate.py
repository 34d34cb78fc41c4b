"""``hvd-lm translate COMMAND``: a model that translates, trained, asked and judged."""

from __future__ import annotations

import json

from hvd_lm.command_line.flags import parse
from hvd_lm.command_line.task_commands import TaskCommand, run_task
from hvd_lm.job import launcher
from hvd_lm.tasks import translation, translator
from hvd_lm.tasks.translation import TranslateTrainConfig
from hvd_lm.tasks.translator import TranslateApplyConfig, TranslateEvaluateConfig


def run(argv: list[str]) -> int:
    """Run the command that `argv` names. Raises ConfigError for an unknown one."""
    return run_task("translate", COMMANDS, argv)


def _train(argv: list[str]) -> None:
    result = translation.train(parse(TranslateTrainConfig, "translate train", argv))
    if launcher.launched_rank() == 0:
        print(result.words)


def _apply(argv: list[str]) -> None:
    """Print the translation of each text on a line."""
    found = translator.apply(parse(TranslateApplyConfig, "translate apply", argv))
    if launcher.launched_rank() == 0:
        for text in found:
            print(text)


def _evaluate(argv: list[str]) -> None:
    """Print the figures as one JSON object."""
    figures = translator.evaluate(parse(TranslateEvaluateConfig, "translate evaluate", argv))
    if launcher.launched_rank() == 0:
        print(json.dumps(figures.to_dict()))


COMMANDS = {
    "train": TaskCommand("make a model that translates, of texts and their translations", _train, TranslateTrainConfig),
    "apply": TaskCommand("the translation of each text", _apply, TranslateApplyConfig),
    "evaluate": TaskCommand("BLEU and chrF of a model's translations", _evaluate, TranslateEvaluateConfig),
}
