"""Files that anyone may have written, changed at random: an error of ours, or a right result; no other exception, no hang.

The sums of a checkpoint are made to fit, as whoever changes one on purpose would. Prepared folders: tests/test_prepare.py.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from parsing import flags
from saved import FILES, TEXT, example, reseal
from test_report import ROWS, write

from hvd_lm import checkpoint as checkpoints
from hvd_lm.config import DataConfig, RunConfig
from hvd_lm.data.sources import Position
from hvd_lm.errors import CheckpointError, ConfigError, DataError, HvdLmError
from hvd_lm.job.topology import Topology
from hvd_lm.report import page as report_page
from hvd_lm.report.runs import read_runs
from hvd_lm.training.cursor import dataset_cursor, go_on
from hvd_lm.training.dataset import TextDataset

NUMBERS = st.sampled_from(
    [-1, 0, 1, 2, 3, 7, 10**6, 2**31, 2**63, 10**19, 10**400, -0.5, 1e-300, 1e300, float("nan"), float("inf")]
)
WORDS = st.sampled_from(["", "None", "x", "../../x", "/etc/passwd", "\0", "\ud800", "lstm", "adam", "1e3", "a" * 1000])
ODD = st.one_of(st.none(), st.booleans(), NUMBERS, WORDS, st.lists(NUMBERS | WORDS, max_size=3), st.just({}), st.just([[]]))


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container within `value`, with each key or index."""
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from places(value[key])


@st.composite
def changed(draw: st.DrawFn, original: Any) -> Any:
    """`original` with one to three odd values, or entries that are gone or more."""
    value = json.loads(json.dumps(original))
    for _ in range(draw(st.integers(1, 3))):
        found = list(places(value))
        container, key = found[draw(st.integers(0, len(found) - 1))]
        action = draw(st.sampled_from(["replace", "replace", "replace", "remove", "add"]))
        if action == "replace":
            container[key] = deepcopy(draw(ODD))
        elif action == "remove":
            del container[key]
        elif isinstance(container, dict):
            container[draw(WORDS)] = deepcopy(draw(ODD))
        else:
            container.append(deepcopy(draw(ODD)))
        if not list(places(value)):
            break
    return value


@st.composite
def damaged(draw: st.DrawFn, original: bytes) -> bytes:
    """`original` with some bytes changed, cut out, or come in; the beginning, where sizes are, more often."""
    content = bytearray(original)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, min(40, len(content))) | st.integers(0, len(content)))
        stop = draw(st.sampled_from([at, at + 1, at + 1, at + 1, at + 8, len(content)]))
        content[at:stop] = draw(st.binary(max_size=8))
    return bytes(content)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a checkpoint that every example copies."""
    return checkpoints.save(example(loss_scale=None, settings={"seed": 3}), tmp_path_factory.mktemp("whole"), keep=1)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where every example begins anew."""
    return tmp_path_factory.mktemp("place") / "x"


def anew(place: Path, whole: Path) -> Path:
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(whole, place)
    return place


def outcome(function: Callable[..., Any], *arguments: Any) -> tuple[Any, HvdLmError | None]:
    """What a function returns, or the error of ours, which is one line."""
    try:
        return function(*arguments), None
    except HvdLmError as error:
        refusal = error
    assert len(str(refusal).splitlines()) == 1
    return None, refusal


def check_checkpoint(folder: Path) -> None:
    """It is refused in one line, or all of it can be used."""
    loaded, refusal = outcome(checkpoints.load, folder)
    if loaded is None:
        assert isinstance(refusal, CheckpointError)
        assert str(folder) in str(refusal)
        return
    assert loaded.weights["embedding"].dtype == np.float32
    assert loaded.weights["embedding"].shape == (loaded.tokenizer.vocabulary_size, loaded.model.embedding_size)
    ids = loaded.tokenizer.encode(TEXT)
    assert ids.min() >= 0
    assert ids.max() < loaded.tokenizer.vocabulary_size
    assert loaded.tokenizer.decode(ids.tolist())
    again = checkpoints.load(checkpoints.save(loaded, folder / "again", keep=1))
    assert (again.step, again.model, again.optimizer) == (loaded.step, loaded.model, loaded.optimizer)


@settings(max_examples=200)
@given(data=st.data())
def test_description_of_a_checkpoint(whole: Path, place: Path, data: st.DataObject) -> None:
    folder = anew(place, whole)
    original = json.loads((folder / "checkpoint.json").read_text())
    (folder / "checkpoint.json").write_text(json.dumps(data.draw(changed(original))))
    if data.draw(st.booleans()):
        seal(folder)
    check_checkpoint(folder)


def seal(folder: Path) -> None:
    """As far as what is there can be sealed."""
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
        reseal(folder)


@settings(max_examples=200)
@given(data=st.data(), name=st.sampled_from(FILES))
def test_bytes_of_a_checkpoint(whole: Path, place: Path, data: st.DataObject, name: str) -> None:
    folder = anew(place, whole)
    (folder / name).write_bytes(data.draw(damaged((folder / name).read_bytes())))
    seal(folder)
    check_checkpoint(folder)


SMALL = st.integers(0, 50)
SEGMENTS = st.lists(st.tuples(SMALL, SMALL).map(lambda ends: tuple(sorted(ends))), max_size=4).map(tuple)


@settings(max_examples=200)
@given(
    segments=SEGMENTS,
    streams=st.sampled_from([2, 1, 5]),
    sequence_length=st.sampled_from([4, 1, 9]),
    micro_batches=SMALL | st.just(2**60),
    read=st.none() | SMALL,
)
def test_position_in_a_text(segments: Any, streams: int, sequence_length: int, micro_batches: int, read: int | None) -> None:
    """A run goes on within its text, or not at all."""
    position = Position(segments, streams, sequence_length, micro_batches, read)
    progress = replace(example().progress, position=position, lstm_state_2SU=np.zeros((2, streams, 9), np.float32))
    tokens = np.arange(40, dtype=np.int32)
    texts: Any = SimpleNamespace(training=tokens, validation=(), test=(), tokenizer=SimpleNamespace(end_of_line_id=1))
    dataset = TextDataset(texts, seed=0)
    data, topology = DataConfig(batch_size=2, sequence_length=4), Topology(0, 1, 1)
    cursor = dataset_cursor(dataset, data, topology, lambda **_: [])
    state, refusal = outcome(go_on, cursor, progress, dataset, data, topology)
    longest = -(-sum(stop - start for start, stop in segments) // streams)
    is_behind = micro_batches > -(-longest // sequence_length) if read is None else read > longest
    if any(stop > 40 for _, stop in segments) or is_behind:
        assert isinstance(refusal, CheckpointError)
        return
    assert state.shape == (2, 2, 9)
    while not cursor.at_end:
        window = cursor.next_window(3)
        for _ in range(window.start, window.stop):
            assert cursor.read()[0].targets_TB.max() < 40
        cursor.pass_window(window)
    cursor.rest()


@settings(max_examples=100)
@given(data=st.data())
def test_settings_of_a_run(place: Path, data: st.DataObject) -> None:
    """As --config, and as a report reads them."""
    shutil.rmtree(place, ignore_errors=True)
    path = write(place) / "config.yaml"
    original = yaml.safe_load(path.read_text())
    if data.draw(st.booleans()):
        path.write_text(yaml.safe_dump(data.draw(changed(original)), allow_unicode=True), errors="surrogatepass")
    else:
        path.write_bytes(data.draw(damaged(path.read_bytes())))
    config, refusal = outcome(flags, "--config", str(path))
    assert isinstance(config, RunConfig) or isinstance(refusal, ConfigError)
    check_report(place)


@settings(max_examples=150)
@given(data=st.data())
def test_metrics_of_a_run(place: Path, data: st.DataObject) -> None:
    shutil.rmtree(place, ignore_errors=True)
    path = write(place) / "metrics.jsonl"
    if data.draw(st.booleans()):
        path.write_text("".join(json.dumps(row) + "\n" for row in data.draw(changed(ROWS))))
    else:
        path.write_bytes(data.draw(damaged(path.read_bytes())))
    check_report(place)


def check_report(run: Path) -> None:
    runs, refusal = outcome(read_runs, [run])
    assert isinstance(refusal, DataError) or "</html>" in report_page.page(runs, [])
