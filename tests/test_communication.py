"""What travels, and when: counted in Horovod's own timeline, and felt when a gradient overflows."""

from __future__ import annotations

import importlib.util
import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import launcher
import numpy as np
import pools
import pytest

from hvd_lm.communication.queueing import QueueingConfig, queueing
from hvd_lm.config import ModelConfig
from hvd_lm.model.stages import parameters

pytestmark = pytest.mark.ranks

STEPS, MODEL = 4, ModelConfig(vocabulary_size=1000, embedding_size=96, hidden_size=512, layers=2)
ITEM_SIZES = {"float16": 2, "float32": 4, "float64": 8}


@dataclass(frozen=True)
class Reduction:
    """One all-reduce of one tensor."""

    tensor: str
    submitted: int
    """When the first rank had it ready, microseconds."""
    bytes: int


@dataclass(frozen=True)
class Timeline:
    """What Horovod did."""

    reductions: list[Reduction]
    gathers: list[str]
    """Tensors of all-gathers."""
    bytes_sent: int = 0
    """That the metrics tell, of all steps."""


def read(timeline: Path) -> Timeline:
    text = timeline.read_text().strip().rstrip(",")
    events = [event for event in json.loads(text if text.endswith("]") else f"{text}]") if event]
    names = {
        event["pid"]: event["args"]["name"] for event in events if event.get("name") == "process_name" and "name" in event["args"]
    }
    submitted: dict[int, int] = {}
    found, gathers = [], []
    for event in events:
        if event.get("name") == "NEGOTIATE_ALLREDUCE" and event["ph"] == "B":
            submitted[event["pid"]] = event["ts"]
        elif event.get("name") == "NEGOTIATE_ALLGATHER" and event["ph"] == "B":
            gathers.append(names[event["pid"]].removeprefix("allgather."))
        elif event.get("ph") == "E" and "dtype" in event.get("args", {}) and event["pid"] in submitted:
            items = math.prod(json.loads(event["args"]["shape"]))
            name = names[event["pid"]].removeprefix("allreduce.")
            found.append(Reduction(name, submitted.pop(event["pid"]), items * ITEM_SIZES[event["args"]["dtype"]]))
    return Timeline(found, gathers)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("timelines")


@pytest.fixture
def train_with_timeline(framework: str, folder: Path) -> Callable[[str], Timeline]:
    """Trains once for each framework and compression."""

    def train(compression: str) -> Timeline:
        out = folder / f"{framework}-{compression}"
        timeline = out.with_suffix(".json")
        if not timeline.exists():
            launcher.hvd_lm(
                2, "train", "--framework", framework, "--out", out, "--compression", compression,
                "--steps", str(STEPS), "--backward-passes-per-step", "3", "--batch-size", "4", "--sequence-length", "32",
                "--vocabulary-size", str(MODEL.vocabulary_size), "--embedding-size", str(MODEL.embedding_size),
                "--hidden-size", str(MODEL.hidden_size), "--validation-share", "0", "--timeline-filename", timeline,
            ).expect_success()  # fmt: skip
        return replace(read(timeline), bytes_sent=sum(row["bytes_sent"] for row in launcher.metrics(out)))

    return train


def test_each_gradient_travels_once_a_window(train_with_timeline: Callable[[str], Timeline]) -> None:
    """Not once per micro-batch; the bytes are those of the gradients, and half of that with fp16.

    Of the embedding only the rows that the window touched on some rank: fewer than its inputs, and far fewer than all.
    """
    gradients = {f"gradient.{name}": math.prod(parameter.shape) for name, parameter in parameters(MODEL).items()}
    dense = {name: values for name, values in gradients.items() if name != "gradient.embedding"}
    travelled, rows = {}, {}
    for compression in ("none", "fp16"):
        timeline = train_with_timeline(compression)
        found = timeline.reductions
        counts = Counter(r.tensor for r in found)
        expected = [*gradients, "loss", "touched_rows"]
        assert {name: counts.pop(name) for name in expected} == dict.fromkeys(expected, STEPS)
        assert counts.total() == 0, counts
        assert timeline.bytes_sent == sum(r.bytes for r in found if r.tensor != "loss")
        # Who is where, versions, settings and text, a checkpoint, weights, files; at the end trouble twice, weights, LSTM states.
        # All frameworks name them alike.
        assert Counter(timeline.gathers) == {"concatenate.all": 9, "concatenate.readers": 1}, "ten in a run, and none in a step"
        travelled[compression] = sum(r.bytes for r in found if r.tensor in dense)
        item_size = 4 if compression == "none" else 2
        embedding = [r.bytes / item_size / MODEL.embedding_size for r in found if r.tensor == "gradient.embedding"]
        rows[compression] = sorted(embedding)
    assert travelled["none"] == STEPS * 4 * sum(dense.values())
    assert travelled["fp16"] * 2 == travelled["none"]
    assert rows["none"] == rows["fp16"]
    assert all(50 < count < 2 * 3 * 4 * 32 * 0.6 for count in rows["none"]), rows


def test_the_reduction_overlaps_with_the_last_backward(train_with_timeline: Callable[[str], Timeline]) -> None:
    """Gradients leave as the backward makes them, the output layer's first, and not all at its end, within microseconds."""
    found = train_with_timeline("none").reductions
    of = {name: [r for r in found if r.tensor == f"gradient.{name}"] for name in ("output_kernel", "embedding")}
    leads = [last.submitted - first.submitted for first, last in zip(of["output_kernel"], of["embedding"], strict=True)]
    assert np.median(leads) > 1000, leads


def test_littles_law_holds_of_a_run(
    train_with_timeline: Callable[[str], Timeline], framework: str, folder: Path, tmp_path: Path
) -> None:
    """Of the whole timeline, and of one that is cut off, of which some gradients are not seen done."""
    train_with_timeline("none")
    whole = folder / f"{framework}-none.json"
    found = queueing(QueueingConfig(whole))
    assert (found.arrivals, found.bursts, found.unfinished) == (STEPS * len(parameters(MODEL)), STEPS, 0)
    assert not found.is_cut
    assert found.unreadable == 0
    assert found.little_difference < 1e-6, "of a system that is empty at both ends it is an identity"
    assert 0 < found.utilisation < 1
    assert found.arrival_variation > 1, "gradients come in bursts"
    assert found.predictions.mg1_wait < found.predictions.burst_wait
    cut = tmp_path / "cut.json"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 6 // 10])
    part = queueing(QueueingConfig(cut))
    assert part.is_cut
    assert part.unreadable == 0
    assert 0 < part.arrivals < found.arrivals
    assert (part.little_difference < 1e-6) == (part.unfinished == 0)


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="the body looks into PyTorch's adapter")
def test_gradients_leave_one_by_one_while_several_micro_batches_go_backward() -> None:
    """Each as soon as it is complete: within the backward of its layer, the largest first."""
    layers = [[f"lstm.{layer}.{name}" for name in ("recurrent_kernel", "input_kernel", "bias")] for layer in range(2)]
    begins, ends = "backward of 3", "done"
    expected = ["output_kernel", "output_bias", begins, *layers[1], ends, begins, *layers[0], ends, "embedding"]
    assert launcher.body("overlap", 2) == [expected] * 2


def test_an_overflow_on_one_rank_skips_the_step_on_all(framework: str) -> None:
    ranks = pools.body("overflow", 2, framework)
    assert ranks[0] == ranks[1]
    before, overflowed, after = ranks[0]
    assert [window["applied"] for window in ranks[0]] == [True, False, True]
    assert overflowed["finite_loss"]
    assert (overflowed["weights"], overflowed["moments"]) == (before["weights"], before["moments"])
    assert after["weights"] != before["weights"]
    assert after["applied_steps"] == 2


def test_an_overflow_is_counted_reported_and_outlived(framework: str, tmp_path: Path) -> None:
    """A loss scale far too large: it halves until the gradients fit, and training goes on."""
    ended = pools.hvd_lm(
        2, "train", "--framework", framework, "--out", tmp_path, *launcher.SMALL, "--steps", "12", "--learning-rate", "0.01",
        "--backward-passes-per-step", "2", "--compression", "fp16", "--loss-scale", str(2.0**22),
    )  # fmt: skip
    rows = launcher.metrics(tmp_path)
    skipped = [row["skipped"] for row in rows]
    count = sum(skipped)
    assert 1 <= count < 12
    assert skipped == [True] * count + [False] * (12 - count)
    assert [row["skipped_steps"] for row in rows] == [*range(1, count + 1)] + [count] * (12 - count)
    assert rows[0]["gradient_norm"] is None
    assert [row["loss_scale"] for row in rows[:count]] == [2.0 ** (21 - k) for k in range(count)]
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert "SKIPPED" in ended.output
    assert f"{count} of 12 steps were skipped" in ended.output


@pytest.mark.parametrize("controller", ["gloo", "mpi"])
def test_sums_of_halves_are_those_of_numpy(framework: str, controller: str) -> None:
    """As released, Gloo skips some assignments: 6e-8 + 1 gives 6e-8 (patches gloo-half-sum and gloo-half-assign)."""
    for result in pools.body("half_sums", 2, framework, controller=controller):
        assert result["pairs"] > 700_000
        assert result["wrong"] == 0


def test_adasum_combines_the_gradients_of_two_ranks(framework: str) -> None:
    """Equation of Maleki et al. 2020: (1 - a.b / 2|a|^2) a + (1 - a.b / 2|b|^2) b."""
    results = pools.body("adasum", 2, framework, controller="mpi")
    a, b = (np.array(result["own"]) for result in results)
    dot = a @ b
    expected = (1 - dot / (2 * a @ a)) * a + (1 - dot / (2 * b @ b)) * b
    for result in results:
        np.testing.assert_allclose(result["combined"], expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(("ranks", "model_parallel", "most"), [(2, 1, 600), (4, 2, 3500)], ids=["one group", "process sets"])
def test_horovod_sleeps_while_there_is_nothing_to_reduce(framework: str, ranks: int, model_parallel: int, most: int) -> None:
    """As released it asks the other ranks every millisecond, in several threads, of each process set (patch idle-sleep)."""
    for result in pools.body("idle", ranks, framework, str(model_parallel)):
        assert result["wake_ups_per_second"] < most, "about 280 and 1500 with the patch; 1000 and 5400 without"
        assert result["median_seconds"] < 0.025, "a tensor does not wait for the end of that sleep, of 50 ms"


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="of PyTorch's wait")
def test_pytorch_waits_asleep() -> None:
    """As released it asks again and again, for as long as it waits (patch torch-wait)."""
    waiting, _ = pools.body("waiting", 2, "torch")
    assert waiting["waited"] > 0.5
    assert waiting["computed"] < 0.02 * waiting["waited"]


@pytest.mark.skipif(importlib.util.find_spec("tensorflow") is None, reason="of TensorFlow's operation")
def test_tensorflow_reduces_in_place() -> None:
    """As released it takes memory for the result beside that of the tensor: 2 tensors (patch tensorflow-in-place)."""
    for result in launcher.body("in_place", 2):
        assert result["sum"] == 3.0
        assert 0.9 < result["tensors"] < 1.5


def test_fp16_learns_like_fp32(framework: str, tmp_path: Path) -> None:
    curves = []
    for compression in ("none", "fp16"):
        out = tmp_path / compression
        pools.hvd_lm(
            2, "train", "--framework", framework, "--out", out, *launcher.SMALL, "--steps", "40", "--compression", compression,
            "--backward-passes-per-step", "2", "--learning-rate", "0.01",
        )  # fmt: skip
        curves.append(launcher.losses(out))
    plain, compressed = np.array(curves)
    assert plain[-1] < plain[0] - 0.5
    np.testing.assert_allclose(compressed, plain, rtol=5e-3)
    assert (compressed != plain).any(), "fp16 was on the wire"


def test_gradients_are_reduced_where_their_rows_are(framework: str) -> None:
    """4 ranks as 2 x 2: two data groups with different rows, each in step within; what is not divided is the same everywhere."""
    results = pools.body("process_sets", 4, framework)
    groups = [results[0::2], results[1::2]]
    for group in groups:
        assert group[0] == group[1]
    assert groups[0][0]["rows"] != groups[1][0]["rows"]
    for name in ("loss", "norm", "common"):
        assert len({result[name] for result in results}) == 1
    assert [group[0]["ranks"] for group in groups] == [0 + 2, 1 + 3]


def test_predivision_changes_no_figure(framework: str, tmp_path: Path) -> None:
    curves = []
    for factor in ("1", "8"):
        out = tmp_path / factor
        pools.hvd_lm(
            2, "train", "--framework", framework, "--out", out, *launcher.SMALL, "--steps", "6", "--backward-passes-per-step", "2",
            "--gradient-predivide-factor", factor,
        )  # fmt: skip
        curves.append(launcher.losses(out))
    np.testing.assert_allclose(curves[1], curves[0], rtol=1e-6)
