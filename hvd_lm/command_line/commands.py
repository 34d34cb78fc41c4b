"""The commands: what each of ``hvd-lm COMMAND`` runs and prints, and how an error ends it.

An error is one line on one rank: rank 0 speaks, or the one that is in trouble alone; the others give it time to, and speak
only if it has nothing to say.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from hvd_lm.command_line import completion, sentiment, streams, translate
from hvd_lm.command_line.flags import PROGRAM, parse, parse_with_yaml
from hvd_lm.command_line.task_commands import TaskCommand
from hvd_lm.communication import measure as measuring
from hvd_lm.communication import plan as planning
from hvd_lm.communication import plan_files, plan_words
from hvd_lm.communication import predict as predicting
from hvd_lm.communication import queueing as queues
from hvd_lm.communication.link import read_link
from hvd_lm.communication.measure import MeasureConfig, Work
from hvd_lm.communication.plan import PlanConfig
from hvd_lm.communication.predict import PredictConfig
from hvd_lm.communication.queueing import QueueingConfig
from hvd_lm.config import RunConfig, with_passes
from hvd_lm.data.prepare import PrepareConfig, prepare
from hvd_lm.errors import BugError, ConfigError, RemovedError, StoppedError, in_family, require
from hvd_lm.evaluation import perplexity, score
from hvd_lm.evaluation.perplexity import EvaluateConfig
from hvd_lm.evaluation.score import ScoreConfig
from hvd_lm.export import ExportConfig, export
from hvd_lm.generation.conversation import converse
from hvd_lm.generation.text import GenerateConfig, TextGenerator
from hvd_lm.job import launcher
from hvd_lm.job.agreement import settings
from hvd_lm.job.helpers import helpers
from hvd_lm.job.stop import leave_by_own_code
from hvd_lm.report.page import ReportConfig, report
from hvd_lm.training.loop import train
from hvd_lm.training.metrics import finite

SECONDS_FOR_THE_SPEAKER = 10.0
"""How long the other ranks wait for one to report the error and for the launcher to end the job."""
SECONDS_FOR_RANK_0 = 2.0
"""How long another speaker does: where memory ends on one rank, it often ends on all."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (0 done, 1 crash, 2 bad input, 3 training failed, 4 worker lost, 5 stopped, 141 reader
    gone)."""
    streams.make_ready()
    try:
        code = run(sys.argv[1:] if argv is None else list(argv))
        sys.stdout.flush()
        return code
    except streams.ReaderGoneError as gone:
        return fail("", gone.exit_code)
    except StoppedError as error:
        leave_by_own_code()
        return fail("" if launcher.launched_rank() else f"{PROGRAM}: {one_line(str(error))}", error.exit_code)
    except RemovedError as removed:
        print(f"{PROGRAM}: {removed}", file=sys.stderr)
        return removed.exit_code
    except KeyboardInterrupt:
        return fail(f"{PROGRAM}: interrupted", 130)
    except Exception as error:
        told = in_family(error) or BugError(traceback.format_exc())
        if isinstance(told, BugError):
            message = f"{str(told).rstrip()}\n{PROGRAM}: this is a bug in hvd_lm; the lines above tell where"
        else:
            message = f"{PROGRAM}: error: {one_line(str(told))}"
        return fail(message, told.exit_code, told.speaker)


def one_line(message: str) -> str:
    """`message` with an escape for whatever is not printed as it is, such as a line break in the name of a file."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in message)


def fail(message: str, code: int, speaker: int | None = 0) -> int:
    """Report `message`, if there is any, once for the whole job, by `speaker`, and end this process with `code`."""
    rank, size = launcher.launched_rank(), launcher.launched_size()
    if message and size > 1 and not rank == speaker == 0:
        # The launcher ends this rank as soon as another one has told it and gone; if none has, only this rank knows what is wrong.
        time.sleep(SECONDS_FOR_RANK_0 if rank == speaker else SECONDS_FOR_THE_SPEAKER)
        message += "" if rank == speaker else f" (rank {rank})"
    # What a stream does not take now is nobody's to hear.
    with suppress(streams.StreamError):
        sys.stdout.flush()
    with suppress(streams.StreamError):
        print(message, end="\n" if message else "", file=sys.stderr, flush=True)
    if size > 1:
        # No clean-up: Horovod's would wait for ranks that are gone.
        os._exit(code)
    return code


@dataclass(frozen=True)
class Command:
    """What `run` knows of a command."""

    summary: str
    run: Callable[[list[str]], int]
    config: type | None = None
    """Whose settings are its flags."""
    commands: Mapping[str, TaskCommand] = field(default_factory=dict)
    """That it has."""


def run(argv: list[str]) -> int:
    """Run the command that `argv` names; errors are raised."""
    try:
        return _run(argv)
    except SystemExit as ended:  # after the help
        return int(ended.code or 0)


def _run(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        lines = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
        print("\n".join([f"usage: {PROGRAM} COMMAND [OPTIONS]", "", *lines, "", f"{PROGRAM} COMMAND --help tells the options."]))
        return 0
    name, *rest = argv
    if name not in COMMANDS:
        raise ConfigError(f"unknown command {name!r}: choose one of {', '.join(COMMANDS)}")
    launcher.check_launch()
    return COMMANDS[name].run(rest)


def run_prepare(argv: list[str]) -> int:
    """Make token shards, with the help of all ranks where MPI launched them; tells what is in them."""
    config = parse(PrepareConfig, "prepare", argv)
    with helpers(settings(config, without=())) as spread:
        if spread is None:
            return 0
        prepared = prepare(config, spread)
    print(f"{prepared.tokenizer.kind} tokenizer, vocabulary {prepared.tokenizer.vocabulary_size}; in {prepared.folder}:")
    for split, counts in prepared.counts.items():
        unknown = "" if prepared.tokenizer.unknown_id is None else f", {counts.unknown_share:.2%} unknown"
        print(f"  {split:<10}  {counts.tokens:,} tokens of {counts.words:,} words in {counts.lines:,} lines{unknown}")
    return 0


def run_train(argv: list[str]) -> int:
    """Train; rank 0 prints where the run is."""
    result = train(parse_with_yaml(RunConfig, "train", argv))
    if launcher.launched_rank() == 0:
        print(result.words)
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


def run_score(argv: list[str]) -> int:
    """Write the log-probabilities of lines or words as TSV."""
    score.run(parse(ScoreConfig, "score", argv))
    return 0


def run_generate(argv: list[str]) -> int:
    """Print the prompt and what the model goes on with: one text as it comes, several one after the other."""
    config = parse(GenerateConfig, "generate", argv)
    if launcher.launched_rank() != 0:
        return 0
    # The other ranks have gone.
    with launcher.alone():
        writer = TextGenerator(config.checkpoint, framework=config.framework, threads=config.threads)
        if config.interactive:
            converse(writer, config)
        elif config.beams:
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


def run_measure(argv: list[str]) -> int:
    """Measure the link, and the model of a run; rank 0 prints what was found."""
    config = parse(MeasureConfig, "measure", argv)
    framework, work = config.framework or "torch", None
    if config.config:
        run = parse_with_yaml(RunConfig, "measure", ["--config", str(config.config)])
        framework, work = config.framework or run.framework, Work.of(with_passes(run, launcher.launched_size()))
        config = replace(config, threads=config.threads or run.threads)
    link = measuring.measure(config, framework, work)
    if launcher.launched_rank() == 0:
        print(measuring.words(link, config.out))
    return 0


def run_predict(argv: list[str]) -> int:
    """Print what a step will take, in words or as one JSON object."""
    config = parse(PredictConfig, "predict", argv)
    if launcher.launched_rank() == 0:
        run = parse_with_yaml(RunConfig, "predict", ["--config", str(config.config)])
        link = read_link(config.link)
        found = predicting.predict(link, run.framework, Work.of(with_passes(run, config.ranks)), run.topology, config.ranks)
        predicting.warn_of_other_hardware(link)
        print(json.dumps(found.to_dict()) if config.json else predicting.words(found))
    return 0


def run_plan(argv: list[str]) -> int:
    """Print which settings train fastest and why, in words or as one JSON object; write the pick where that is asked for."""
    config = parse(PlanConfig, "plan", argv)
    if launcher.launched_rank() == 0:
        run = parse_with_yaml(RunConfig, "plan", ["--config", str(config.config)])
        link = read_link(config.link)
        require(not run.elastic, "a plan is for a number of ranks that stays: use it without --elastic")
        counts = planning.parse_ranks(config.ranks)
        found = planning.plan(
            link,
            run.framework,
            Work.of(run),
            run.topology,
            counts,
            config.target_batch,
            noise_scale=config.noise_scale,
            other_links={str(path): read_link(path) for path in config.other_links},
        )
        if config.out:
            plan_files.write_plan(found, run, link, config.link, config.out)
        predicting.warn_of_other_hardware(link)
        planning.warn_of_the_pick(found, link)
        print(json.dumps(found.to_dict()) if config.json else plan_words.words(found))
        if config.out and not config.json:
            print(plan_files.words(config.out))
    return 0


def run_queueing(argv: list[str]) -> int:
    """Print a timeline's queue, in words or as one JSON object."""
    config = parse(QueueingConfig, "queueing", argv)
    if launcher.launched_rank() == 0:
        found = queues.queueing(config)
        print(json.dumps(found.to_dict()) if config.json else queues.words(found))
    return 0


def run_doctor(argv: list[str]) -> int:
    """Check this machine."""
    from hvd_lm.job import doctor  # apart from the rest, so that it runs where they do not load

    return doctor.main(argv)


def run_completion(argv: list[str]) -> int:
    """Print what makes a shell complete commands and flags."""
    require(len(argv) == 1, f"give the shell: {PROGRAM} completion bash, or zsh")
    words = {"": list(COMMANDS)}
    for name, command in COMMANDS.items():
        words[name] = completion.flags_of(command.config) if command.config else list(command.commands)
        words |= {f"{name} {of_task}": completion.flags_of(its.config) for of_task, its in command.commands.items()}
    print(completion.script(argv[0], words), end="")
    return 0


COMMANDS: Mapping[str, Command] = {
    "prepare": Command("turn texts, or a public corpus, into token shards to train on", run_prepare, PrepareConfig),
    "train": Command("train a language model, alone or under horovodrun", run_train, RunConfig),
    "evaluate": Command("perplexity of a checkpoint on a text", run_evaluate, EvaluateConfig),
    "score": Command("log-probability of every line, or every word, of texts", run_score, ScoreConfig),
    "generate": Command("write text with a checkpoint", run_generate, GenerateConfig),
    "sentiment": Command(
        "train, evaluate, predict: the sentiment, or another label, of texts", sentiment.run, commands=sentiment.COMMANDS
    ),
    "translate": Command("train, apply, evaluate: translations of texts", translate.run, commands=translate.COMMANDS),
    "export": Command("give the weights to plain PyTorch, Keras, ONNX or NumPy", run_export, ExportConfig),
    "report": Command("learning curves of runs, as pictures and one page", run_report, ReportConfig),
    "measure": Command(
        "time Horovod's operations on this link, and a model's compute, on every rank of a job", run_measure, MeasureConfig
    ),
    "predict": Command("what a step will take on a measured link, and how much of it is communication", run_predict, PredictConfig),
    "plan": Command("which ranks, accumulation and compression train fastest on a measured link, and why", run_plan, PlanConfig),
    "queueing": Command("a run's Horovod timeline as a queue: how busy the link was, and who waited", run_queueing, QueueingConfig),
    "doctor": Command("check frameworks, Horovod, its controllers and operations", run_doctor),
    "completion": Command("what makes bash or zsh complete commands and flags", run_completion),
}
