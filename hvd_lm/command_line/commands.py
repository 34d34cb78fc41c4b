"""The command line: ``hvd-lm COMMAND``, flags made from the config dataclasses.

An error is one line on one rank: rank 0 speaks, the others give it time to, and speak only if it has nothing to say.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints
from unittest.mock import patch

import tyro

from hvd_lm.config import RunConfig, read_yaml
from hvd_lm.data.prepare import PrepareConfig, prepare
from hvd_lm.errors import ConfigError, HvdLmError
from hvd_lm.evaluation import perplexity
from hvd_lm.evaluation.perplexity import EvaluateConfig
from hvd_lm.export import ExportConfig, export
from hvd_lm.generation.text import GenerateConfig, TextGenerator
from hvd_lm.job import launcher
from hvd_lm.report.page import ReportConfig, report
from hvd_lm.training.loop import train
from hvd_lm.training.metrics import finite

PROGRAM = "hvd-lm"
SECONDS_FOR_RANK_0 = 10.0
"""How long another rank waits for rank 0 to report the same error and for the launcher to end the job."""

_Config = TypeVar("_Config")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (0 done, 1 crash, 2 bad input, 3 training failed, 4 worker lost)."""
    try:
        return run(sys.argv[1:] if argv is None else list(argv))
    except HvdLmError as error:
        return fail(f"{PROGRAM}: error: {error}", error.exit_code)
    except KeyboardInterrupt:
        return fail(f"{PROGRAM}: interrupted", 130)
    except Exception:
        return fail(f"{traceback.format_exc()}{PROGRAM}: this is a bug in hvd_lm; the lines above tell where", 1)


def fail(message: str, code: int) -> int:
    """Report `message` once for the whole job, and end this process with `code`."""
    if launcher.launched_size() == 1:
        print(message, file=sys.stderr, flush=True)
        return code
    rank = launcher.launched_rank()
    if rank != 0:
        # The launcher ends this rank as soon as rank 0 has gone; if it has not, only this rank knows what is wrong.
        time.sleep(SECONDS_FOR_RANK_0)
        message += f" (rank {rank})"
    print(message, file=sys.stderr, flush=True)
    sys.stdout.flush()
    # No clean-up: Horovod's would wait for ranks that are gone.
    os._exit(code)


@dataclass(frozen=True)
class Command:
    """What `run` knows of a command."""

    summary: str
    run: Callable[[list[str]], int]


def run(argv: list[str]) -> int:
    """Run the command that `argv` names; errors are raised."""
    if not argv or argv[0] in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        lines = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
        print("\n".join([f"usage: {PROGRAM} COMMAND [OPTIONS]", "", *lines, "", f"{PROGRAM} COMMAND --help tells the options."]))
        return 0
    name, *rest = argv
    if name not in COMMANDS:
        raise ConfigError(f"unknown command {name!r}: choose one of {', '.join(COMMANDS)}")
    return COMMANDS[name].run(rest)


def run_prepare(argv: list[str]) -> int:
    """Make token shards; tells what is in them."""
    config = parse(PrepareConfig, "prepare", argv)
    if launcher.launched_rank() != 0:
        return 0
    prepared = prepare(config)
    print(f"{prepared.tokenizer.kind} tokenizer, vocabulary {prepared.tokenizer.vocabulary_size}; in {prepared.folder}:")
    for split, counts in prepared.counts.items():
        unknown = "" if prepared.tokenizer.unknown_id is None else f", {counts.unknown_share:.2%} unknown"
        print(f"  {split:<10}  {counts.tokens:,} tokens of {counts.words:,} words in {counts.lines:,} lines{unknown}")
    return 0


def run_train(argv: list[str]) -> int:
    """Train; rank 0 prints where the run is."""
    result = train(parse(RunConfig, "train", argv, accepts_yaml=True))
    if launcher.launched_rank() == 0 and result.validation:
        print(f"validation perplexity {result.validation.perplexity:.2f} after {result.steps} steps; the run is in {result.out}")
    return 0


def run_evaluate(argv: list[str]) -> int:
    """Print loss and perplexity as one JSON object."""
    config = parse(EvaluateConfig, "evaluate", argv)
    began = time.perf_counter()
    result = perplexity.run(config)
    if launcher.launched_rank() == 0:
        figures = {
            "loss": result.loss,
            "perplexity": result.perplexity,
            "word_perplexity": result.word_perplexity,
            "bits_per_character": result.bits_per_character,
            "bits_per_byte": result.bits_per_byte,
            "tokens": result.tokens,
            "words": result.text.words,
            "lines": result.text.lines,
            "characters": result.text.characters,
            "bytes": result.text.bytes,
            "unknown_share": result.text.unknown_share,
            "seconds": time.perf_counter() - began,
        }
        print(json.dumps(finite(figures)))
    return 0


def run_generate(argv: list[str]) -> int:
    """Print the prompt and what the model goes on with: one text as it comes, several one after the other."""
    config = parse(GenerateConfig, "generate", argv)
    if launcher.launched_rank() != 0:
        return 0
    writer = TextGenerator(config.checkpoint, framework=config.framework, threads=config.threads)
    if config.beams:
        found = writer.beam_search(
            config.prompt, config.beams, length=config.length, length_penalty=config.length_penalty, stop=config.stop
        )
        _print_texts(config.prompt, [beam.text for beam in found[: config.samples]])
    elif config.samples == 1:
        print(config.prompt, end="", flush=True)
        for piece in writer.stream(config.prompt, length=config.length, sampling=config.sampling, stop=config.stop):
            print(piece, end="", flush=True)
        print()
    else:
        _print_texts(
            config.prompt,
            writer.samples(config.prompt, config.samples, length=config.length, sampling=config.sampling, stop=config.stop),
        )
    return 0


def _print_texts(prompt: str, texts: Sequence[str]) -> None:
    for number, text in enumerate(texts, start=1):
        if len(texts) > 1:
            print(f"--- {number} of {len(texts)} ---")
        print(prompt + text)


def run_export(argv: list[str]) -> int:
    """Write the weights of a checkpoint for another library; tells where."""
    config = parse(ExportConfig, "export", argv)
    if launcher.launched_rank() == 0:
        print(f"{config.format} export in {export(config)}")
    return 0


def run_report(argv: list[str]) -> int:
    """Draw the curves of runs; tells where."""
    config = parse(ReportConfig, "report", argv)
    if launcher.launched_rank() == 0:
        print(f"report in {report(config)}")
    return 0


def run_doctor(argv: list[str]) -> int:
    """Check this machine."""
    from hvd_lm.job import doctor  # apart from the rest, so that it runs where they do not load

    return doctor.main(argv)


COMMANDS: Mapping[str, Command] = {
    "prepare": Command("turn texts, or a public corpus, into token shards to train on", run_prepare),
    "train": Command("train a language model, alone or under horovodrun", run_train),
    "evaluate": Command("perplexity of a checkpoint on a text", run_evaluate),
    "generate": Command("write text with a checkpoint", run_generate),
    "export": Command("give the weights to plain PyTorch, Keras, ONNX or NumPy", run_export),
    "report": Command("learning curves of runs, as pictures and one page", run_report),
    "doctor": Command("check frameworks, Horovod, its controllers and operations", run_doctor),
}


# --- flags -----------------------------------------------------------------------------------------------


def parse(config_type: type[_Config], command: str, argv: list[str], *, accepts_yaml: bool = False) -> _Config:
    """The config that the flags (and the YAML file of --config, which they override) describe.

    Raises ConfigError with one line for anything that does not parse.
    """
    description = None
    if accepts_yaml:
        flags = _without_yaml(argv)
        if flags and not flags[0].startswith("-"):
            raise ConfigError(f"unexpected word {flags[0]!r} (see {PROGRAM} {command} --help)")
        argv = _flags_of_yaml(argv) + flags
        description = f"{config_type.__doc__} Settings may come from YAML too: --config FILE.yaml; flags win."
    printed = io.StringIO()
    # tyro draws its errors as wide as the terminal, and breaks words at the edge.
    width = {} if {"-h", "--help"} & set(argv) else {"COLUMNS": "1000"}
    try:
        with contextlib.redirect_stderr(printed), patch.dict(os.environ, width):
            return tyro.cli(
                config_type,
                prog=f"{PROGRAM} {command}",
                description=description,
                args=argv,
                config=(tyro.conf.OmitArgPrefixes,),
            )
    except SystemExit as exit_:
        if not exit_.code:
            raise
        raise ConfigError(f"{_one_line(printed.getvalue())} (see {PROGRAM} {command} --help)") from None


def _one_line(panel: str) -> str:
    """What tyro says in a drawn panel, up to the first rule, as a line."""
    lines: list[str] = []
    for line in panel.splitlines():
        text = re.sub(r"[│╭╮╰╯]", "", line).strip()
        if re.match(r"─{3,}$", text) and lines:
            break
        if text and "─" not in text:
            lines.append(text)
    # What a config refuses says all by itself; the name of its class is of no interest.
    return re.sub(r"^Error parsing \w+Config: ", "", " ".join(lines)) or "the flags do not parse"


def _yaml_position(argv: Sequence[str]) -> int | None:
    return next((i for i, word in enumerate(argv) if word == "--config" or word.startswith("--config=")), None)


def _without_yaml(argv: list[str]) -> list[str]:
    position = _yaml_position(argv)
    if position is None:
        return argv
    return argv[:position] + argv[position + (2 if argv[position] == "--config" else 1) :]


def _flags_of_yaml(argv: list[str]) -> list[str]:
    position = _yaml_position(argv)
    if position is None:
        return []
    word = argv[position]
    if word == "--config" and position + 1 == len(argv):
        raise ConfigError("--config needs a file")
    path = Path(argv[position + 1] if word == "--config" else word.removeprefix("--config="))
    hints = _field_types(RunConfig)
    flags: list[str] = []
    for name, value in read_yaml(path).items():
        flag = f"--{name.replace('_', '-')}"
        optional = type(None) in get_args(hints.get(name))
        if isinstance(value, bool):
            flags.append(flag if value else f"--no-{flag[2:]}")
        elif isinstance(value, list):
            flags += [flag, *map(str, value)]
        elif value is None and get_origin(hints.get(name)) is tuple:
            flags.append(flag)
        elif value is None and name in hints and not optional:
            raise ConfigError(f"{flag} needs a value, but --config {path} leaves it empty")
        else:
            flags.append(f"{flag}={value}")
    return flags


def _field_types(config_type: type) -> dict[str, Any]:
    """Name -> type of every setting, those of nested configs included."""
    types: dict[str, Any] = {}
    for name, hint in get_type_hints(config_type).items():
        types |= _field_types(hint) if is_dataclass(hint) and isinstance(hint, type) else {name: hint}
    return types


if __name__ == "__main__":
    sys.exit(main())
