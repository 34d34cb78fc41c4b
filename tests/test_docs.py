"""README and guides are true: their commands and Python examples run, their links lead somewhere, flags and files exist."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

import launcher
import pools
import pytest
from conftest import INSTALLED

from hvd_lm.communication.measure import MeasureConfig
from hvd_lm.communication.plan import PlanConfig
from hvd_lm.communication.predict import PredictConfig
from hvd_lm.communication.queueing import QueueingConfig
from hvd_lm.config import RunConfig
from hvd_lm.data.prepare import PrepareConfig
from hvd_lm.evaluation.perplexity import EvaluateConfig
from hvd_lm.evaluation.score import ScoreConfig
from hvd_lm.export import ExportConfig
from hvd_lm.generation.text import GenerateConfig
from hvd_lm.report.page import ReportConfig
from hvd_lm.tasks.classifier import ClassEvaluateConfig, ClassPredictConfig
from hvd_lm.tasks.sentiment import SentimentTrainConfig
from hvd_lm.tasks.translation import TranslateTrainConfig
from hvd_lm.tasks.translator import TranslateApplyConfig, TranslateEvaluateConfig

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
"""Pages whose commands run."""
MARKDOWN = [*PAGES, *sorted((ROOT / "benchmarks").rglob("*.md"))]
"""Pages whose links are followed."""
LANGUAGES = {"sh", "python", "text", "mermaid"}

NOT_RUN = {
    "make train": "installs and builds; .ci/run runs it",
    "make test": "would run itself",
    "make test-faults": "takes half an hour, and root",
    "source .venv/bin/activate": "made by make",
    "hvd-lm prepare --corpus wikitext-2 --out wikitext-2": "downloads; tests/test_download.py has a server of its own",
    "mpirun --host one,two --map-by node --bind-to none hvd-lm prepare texts --out data --vocabulary-size 10000": (
        "two hosts; tests/test_helpers.py runs it on one"
    ),
    "RANKS=4 FRAMEWORK=tensorflow jobs/local_gloo.sh texts": "the reference model on 4 ranks; tests/test_jobs.py runs the file",
    "HOSTS=one:4,two:4 CONTROLLER=mpi NETWORK=eth0 jobs/several_hosts.sh texts": "two hosts; tests/test_jobs.py runs the file",
}
"""Commands in the pages that this test does not run, and why."""

FEWER = 50
"""Steps, and the steps between checkpoints, are divided by this."""
SMALLER = ("--hidden-size", "16", "--embedding-size", "16", "--batch-size", "4", "--sequence-length", "8")
"""What commands train with here: the last flag wins."""
SECONDS = 600
"""Until a command, or several in one process, must have ended."""


@dataclass(frozen=True)
class Block:
    """What stands between two ``` of a page."""

    page: Path
    language: str
    text: str


def blocks(page: Path) -> list[Block]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [Block(page, language, text) for language, text in found]


def commands(page: Path) -> list[list[str]]:
    """The commands of a page, as words, without comments."""
    lines = [line for block in blocks(page) if block.language == "sh" for line in block.text.splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def to_run(page: Path) -> list[list[str]]:
    return [command for command in commands(page) if shlex.join(command) not in {shlex.join(shlex.split(c)) for c in NOT_RUN}]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


# --- commands --------------------------------------------------------------------------------------------


def smaller(command: list[str]) -> list[str]:
    """`command` with a small model and few steps, if it trains."""
    if command[command.index("hvd-lm") + 1] != "train":
        return command
    words = list(command)
    for index, word in enumerate(words):
        if word in ("--steps", "--checkpoint-every", "--validation-every"):
            words[index + 1] = str(max(1, int(words[index + 1]) // FEWER))
    return [*words, *SMALLER, *(() if "--steps" in words else ("--steps", "2"))]


def installed(command: list[str]) -> bool:
    """Whether what the command needs beside torch is here."""
    return "tensorflow" in INSTALLED or not {"tensorflow", "keras"} & set(command)


TOGETHER = """
import json, shlex, sys
from hvd_lm.command_line.commands import main
for command in json.loads(sys.argv[1]):
    print("$", shlex.join(command), flush=True)
    if code := main(command[1:]):
        sys.exit(f"`{shlex.join(command)}` ended with {code}")
"""
"""Runs several hvd-lm commands in one process: most of a small one is the import of the framework."""


def started_ranks(command: list[str]) -> tuple[int, str, list[str]] | None:
    """Ranks and controller of a command that started ranks can obey, and what they are to do; None of any other.

    Elastic workers are started by their launcher, and a timeline when Horovod is.
    """
    if command[:2] != ["horovodrun", "-np"] or {"--elastic", "--timeline-filename"} & set(command):
        return None
    ranks, *launch = command[2 : (program := command.index("hvd-lm"))]
    controllers: dict[tuple[str, ...], str] = {(): "gloo", ("--gloo",): "gloo", ("--mpi",): "mpi"}
    return int(ranks), controllers[tuple(launch)], command[program + 1 :]


def run_all(page_commands: list[list[str]], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    for alone, group in groupby(map(smaller, page_commands), key=lambda command: command[0] == "hvd-lm"):
        if alone:
            launcher.run(sys.executable, "-c", TOGETHER, json.dumps(list(group)), timeout=SECONDS).expect_success()
        else:
            for command in group:
                if started := started_ranks(command):
                    ranks, controller, words = started
                    framework = words[words.index("--framework") + 1] if "--framework" in words else INSTALLED[0]
                    ended = pools.hvd_lm(ranks, *words, framework=framework, controller=controller, timeout=SECONDS)
                else:
                    ended = launcher.run(*command, timeout=SECONDS)
                ended.expect_success()


WORLD = [
    "hvd-lm prepare texts --out data --vocabulary-size 10000",
    "hvd-lm train --data data --steps 100 --out runs/prepared",
    "hvd-lm train --steps 100 --out runs/one",
]
"""Makes what the pages take for granted."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the pages take for granted: texts, a prepared text, runs."""
    from hvd_lm.data.corpus import embedded_corpus

    folder = tmp_path_factory.mktemp("world")
    shutil.copy(ROOT / "README.md", folder / "README.md")
    # Short: dynamic evaluation takes a step of the optimizer for every few words.
    (folder / "other.txt").write_text("The value of a short text is that it is soon read.\n" * 20, encoding="utf-8")
    rows = "a text that is good\tgood\nno text at all , and bad\tbad\n" * 20
    (folder / "reviews.tsv").write_text(f"text\tlabel\n{rows}", encoding="utf-8")
    for name, lines in {"en": "one dog\ntwo cats\n", "de": "ein Hund\nzwei Katzen\n"}.items():
        (folder / f"train.{name}").write_text(lines * 40, encoding="utf-8")
        (folder / f"test.{name}").write_text(lines, encoding="utf-8")
    (folder / "texts").mkdir()
    # A vocabulary of 10000 needs more words than the corpus has: numbers make up the rest.
    text = " ".join(map(str, range(5000))) + "\n" + embedded_corpus()
    (folder / "texts" / "one.txt").write_text(text, encoding="utf-8")
    with pytest.MonkeyPatch.context() as monkeypatch:
        run_all([shlex.split(command) for command in WORLD], folder, monkeypatch)
    return folder


@pytest.fixture
def folder(world: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """What the page takes for granted, without what its own commands make."""
    made = {command[command.index("--out") + 1] for command in to_run(request.getfixturevalue("page")) if "--out" in command}
    place = tmp_path / "here"
    shutil.copytree(world, place, symlinks=True)
    for name in made & {"data", "runs/one", "runs/prepared"}:
        shutil.rmtree(place / name)
    return place


@pytest.mark.ranks
@pytest.mark.skipif("torch" not in INSTALLED, reason="the pages are written for torch")
@pytest.mark.parametrize("page", [page for page in PAGES if to_run(page)], ids=name_of)
def test_commands_run(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_all([command for command in to_run(page) if installed(command)], folder, monkeypatch)


def test_every_command_is_run_or_has_a_reason() -> None:
    assert len(PAGES) > 10
    for page in PAGES:
        for command in to_run(page):
            assert command[0] in ("hvd-lm", "horovodrun"), f"{name_of(page)}: neither run nor in NOT_RUN: {shlex.join(command)}"


def test_exceptions_are_still_in_the_pages() -> None:
    written = {shlex.join(command) for page in PAGES for command in commands(page)}
    assert [command for command in NOT_RUN if shlex.join(shlex.split(command)) not in written] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_says_what_it_is(page: Path) -> None:
    """Commands in a block without its language would not be run."""
    assert page.read_text(encoding="utf-8").count("```") == 2 * len(blocks(page))
    assert {block.language for block in blocks(page)} <= LANGUAGES


def test_smaller_commands_keep_what_they_say() -> None:
    command = shlex.split("horovodrun -np 2 --gloo hvd-lm train --steps 200 --checkpoint-every 10 --out x")
    assert smaller(command) == [
        *shlex.split("horovodrun -np 2 --gloo hvd-lm train --steps 4 --checkpoint-every 1 --out x"),
        *SMALLER,
    ]
    assert smaller(["hvd-lm", "train"]) == ["hvd-lm", "train", *SMALLER, "--steps", "2"]
    assert smaller(["hvd-lm", "evaluate"]) == ["hvd-lm", "evaluate"]


# --- Python ----------------------------------------------------------------------------------------------

EXAMPLES = [block for page in PAGES for block in blocks(page) if block.language == "python"]


def test_there_are_examples() -> None:
    assert [name_of(block.page) for block in EXAMPLES] == [
        "README.md",
        "docs/communication.md",
        "docs/communication.md",
        "docs/python.md",
        "docs/python.md",
        "docs/python.md",
        "docs/sentiment.md",
        "docs/translation.md",
    ]


@pytest.mark.ranks
@pytest.mark.skipif("torch" not in INSTALLED, reason="the examples are written for torch")
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda block: name_of(block.page))
def test_example_runs(example: Block, tmp_path: Path) -> None:
    shutil.copy(ROOT / "README.md", tmp_path)
    command = [sys.executable, "-c", example.text]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


# --- links, files, flags ---------------------------------------------------------------------------------


def prose(page: Path) -> str:
    """The page without its blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def broken_links(page: Path) -> list[str]:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and (target.suffix != ".md" or anchor not in anchors(target))):
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", MARKDOWN, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    assert broken_links(page) == []


def test_checker_of_links_finds_broken_ones(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# One, two\n[a](page.md) [b](#one-two) [c](page.md#one) [d](none.md) [e](https://x.y/z)\n```sh\n[f](no)\n```\n"
    )
    assert broken_links(page) == ["page.md#one", "none.md"]


DOCKER = ("--device", "--init", "--shm-size")
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")


def flags_of(config_type: type[Any]) -> Iterator[str]:
    hints = get_type_hints(config_type)
    for field in fields(config_type):
        if is_dataclass(hints[field.name]):
            yield from flags_of(hints[field.name])
        else:
            flag = field.name.replace("_", "-")
            yield f"--{flag}"
            if hints[field.name] is bool:
                yield f"--no-{flag}"


@cache
def known_flags() -> frozenset[str]:
    """Every flag of hvd-lm, of horovodrun, and of what else the pages tell."""
    configs = (
        RunConfig,
        PrepareConfig,
        EvaluateConfig,
        ScoreConfig,
        SentimentTrainConfig,
        ClassEvaluateConfig,
        ClassPredictConfig,
        TranslateTrainConfig,
        TranslateApplyConfig,
        TranslateEvaluateConfig,
        GenerateConfig,
        ExportConfig,
        ReportConfig,
        QueueingConfig,
        MeasureConfig,
        PredictConfig,
        PlanConfig,
    )
    ours = {flag for config in configs for flag in flags_of(config)} | {"--config", "--help"}
    horovodrun = re.findall(FLAG, launcher.run("horovodrun", "--help").expect_success().output)
    return frozenset([*ours, *horovodrun, "--check", "--gpu", "--install-system-packages", "--oversubscribe", *DOCKER])


def named_flags(page: Path) -> set[str]:
    spans = re.findall(r"`([^`\n]+)`", prose(page))
    return {flag for span in spans for flag in re.findall(FLAG, span)}


def test_flags_that_the_pages_name_exist() -> None:
    named = {flag: name_of(page) for page in PAGES for flag in named_flags(page)}
    known = known_flags()
    assert len(named) > 50
    assert {flag: page for flag, page in named.items() if flag not in known} == {}


def exists(file: str) -> bool:
    """Whether a file that the tour names is there: in the repository, the package, or an adapter."""
    return any((ROOT / place / file).exists() for place in (".", "hvd_lm", "hvd_lm/adapters/pytorch"))


def named_files() -> set[str]:
    """Files of the package that the tour names in its text."""
    text, _, _ = prose(DOCS / "tour.md").partition("## Rooms")
    return set(re.findall(r"`((?:\w+/)+\w+\.py)`", text))


def test_files_that_the_tour_names_exist() -> None:
    files = named_files()
    assert len(files) > 20
    assert [file for file in sorted(files) if not exists(file)] == []


# --- the list of rooms -----------------------------------------------------------------------------------


def script(name: str) -> ModuleType:
    """One that writes a part of a page."""
    sys.path.insert(0, str(DOCS))
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def rooms() -> ModuleType:
    return script("rooms")


def test_table_of_faults_is_that_of_their_tests() -> None:
    faults = script("faults")
    page = faults.PAGE.read_text(encoding="utf-8")
    assert faults.page_with(page, "faults", faults.listing()) == page, "run `python docs/faults.py`"
    assert len({(row.fault, row.moment, row.over) for row in faults.ROWS}) == len(faults.ROWS) > 30


def test_list_of_rooms_is_up_to_date(rooms: ModuleType) -> None:
    page = rooms.PAGE.read_text(encoding="utf-8")
    assert rooms.page_with(page, "rooms", rooms.listing(rooms.rooms())) == page, "run `python docs/rooms.py`"


def test_rooms_are_read_from_the_code(rooms: ModuleType, tmp_path: Path) -> None:
    package = tmp_path / "house"
    for name, source in {
        "__init__.py": '"""A house."""\nfrom house.hall import greet',
        "hall.py": '"""The hall.\n\nMore."""',
        "kitchen/__init__.py": '"""Food."""',
        "kitchen/stove.py": "from house import hall\nfrom . import pan\ndef f():\n    import house.cellar.wine",
        "kitchen/pan.py": '"""A | pan."""\nfrom ..cellar import wine\nimport os',
        "cellar/__init__.py": "",
        "cellar/wine.py": '"""Wine."""\nfrom house.cellar import *',
    }.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(source)
    beside, cellar, kitchen = rooms.rooms(package)
    assert beside.imports == ("hall",)
    assert beside.files == (("__init__.py", "A house."), ("hall.py", "The hall."))
    assert (cellar.summary, cellar.imports) == ("", ())
    assert (kitchen.summary, kitchen.imports) == ("Food.", ("cellar", "hall"))
    assert kitchen.files == (("kitchen/pan.py", "A | pan."), ("kitchen/stove.py", ""))
    assert "    kitchen --> cellar\n" in rooms.listing([beside, cellar, kitchen])
    assert "A \\| pan." in rooms.listing([kitchen])
