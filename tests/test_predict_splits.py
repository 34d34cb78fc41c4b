"""Steps of divided models, predicted: against the hand, against bytes that are counted elsewhere, and as they must grow."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from test_predict import MODEL, WORK
from test_predict import a_link as of_whole_models

from hvd_lm.command_line.commands import main
from hvd_lm.communication.divided_update import divided, in_parts, new_rows, share_of_update
from hvd_lm.communication.gradients import distinct_words, gradients
from hvd_lm.communication.link import Link, write_link
from hvd_lm.communication.measure import Work
from hvd_lm.communication.pairs import Pairs
from hvd_lm.communication.pipeline import held_by_ranks
from hvd_lm.communication.predict import Prediction, predict
from hvd_lm.config import Framework, ModelConfig, TopologyConfig
from hvd_lm.errors import ConfigError
from hvd_lm.model.cost import vocabulary_split_bytes
from hvd_lm.model.stages import parameters
from hvd_lm.plain_values import to_dict

COMMUNICATION = WORK.communication
TOKENS = 4 * 16
FORWARD, BACKWARD, BASE, UPDATE = 0.01, 0.02, 0.003, 0.005
LAYERS, OPTIMIZER, VOCABULARY = (
    TopologyConfig(model_parallel=2, split="layers"),
    TopologyConfig(split="optimizer"),
    TopologyConfig(model_parallel=2),
)
SPLITS = pytest.mark.parametrize("topology", [LAYERS, OPTIMIZER, VOCABULARY], ids=lambda its: its.split)


def a_link(alpha: float = 0.0, beta: float = 0.0, negotiation: float = 0.0, model: ModelConfig = MODEL) -> Link:
    found = of_whole_models(alpha, beta, negotiation)
    assert found.compute is not None
    return replace(found, compute=replace(found.compute, model=to_dict(model), backward_base=BASE))


def of(link: Link, topology: TopologyConfig, ranks: int = 4, work: Work = WORK, framework: Framework = "torch") -> Prediction:
    return predict(replace(link, framework=framework), framework, work, topology, ranks)


def without_cycles(**settings: Any) -> Work:
    return replace(WORK, communication=replace(COMMUNICATION, cycle_time_ms=1e-9, **settings))


@SPLITS
def test_a_step_is_the_sum_of_its_parts(topology: TopologyConfig) -> None:
    found = of(a_link(1e-4, 1e-7, 5e-4), topology)
    names = ("forward", "backward", "exchange", "exposed", "averaging", "update", "sharing", "compression")
    assert found.step_seconds == pytest.approx(sum(getattr(found, f"{name}_seconds") for name in names))
    assert all(getattr(found, f"{name}_seconds") >= 0 for name in names)
    readers = 2 if topology.split == "layers" else 4
    assert found.tokens_per_second == pytest.approx(readers * 4 * TOKENS / found.step_seconds)
    alone = 4 * FORWARD + BASE + 4 * BACKWARD + UPDATE
    assert found.scaling_efficiency == pytest.approx(readers * alone / (4 * found.step_seconds))


@SPLITS
@given(st.floats(0, 1e-3), st.floats(1e-12, 1e-6), st.floats(1, 10))
def test_a_step_grows_with_latency_and_bytes(topology: TopologyConfig, alpha: float, beta: float, factor: float) -> None:
    """Up to what a tensor saves that shares a turn."""
    here = of(a_link(alpha, beta, 1e-4), topology)
    saved = len(here.operations) * 1.1e-3
    for other in (a_link(alpha * factor, beta, 1e-4), a_link(alpha, beta * factor, 1e-4)):
        assert of(other, topology).step_seconds >= here.step_seconds - saved


# --- the optimizer ---------------------------------------------------------------------------------------


def test_each_rank_updates_its_part() -> None:
    """A link that takes no time: all but the embedding is divided by four."""
    found = of(a_link(), OPTIMIZER, work=without_cycles())
    sizes = {name: math.prod(its.shape) for name, its in parameters(MODEL).items()}
    whole = sizes.pop("embedding")
    assert found.update_seconds == pytest.approx(UPDATE * (whole + sum(sizes.values()) / 4) / (whole + sum(sizes.values())))
    assert found.step_seconds == pytest.approx(4 * FORWARD + BASE + 4 * BACKWARD + found.update_seconds)


@pytest.mark.parametrize("framework", ["torch", "tensorflow"])
def test_gradients_go_in_parts_and_rows_come_back(framework: Framework) -> None:
    large = replace(MODEL, vocabulary_size=60_000)
    sent = gradients(large, WORK.data, COMMUNICATION, 4, 1.0)
    shares = divided(large, 4)
    assert set(shares) == set(parameters(large)) - {"embedding"}
    parts = in_parts(sent, shares, 4)
    assert sum(one.size for one in parts) == pytest.approx(sum(one.size for one in sent))
    kernel = [one for one in parts if one.name.startswith("gradient.output_kernel")]
    # 60,000 rows of 32, of each rank 2^17 values at a time.
    assert [one.size for one in kernel] == [4 * 4096 * 32 * 4] * 3 + [4 * (15_000 - 3 * 4096) * 32 * 4]
    assert {one.collective for one in kernel} == {"alltoall"}
    rows = new_rows(shares, framework)
    assert sum(one.size for one in rows) == 4 * sum(math.prod(its.parameter.shape) for its in shares.values())
    assert {one.collective for one in rows} == {"broadcast" if framework == "torch" else "allgather"}


def test_the_whole_update_is_one() -> None:
    assert share_of_update(MODEL, {}) == 1


def test_new_rows_are_waited_for() -> None:
    """One byte takes a microsecond, four ranks: a broadcast takes two steps of its tree."""
    found = of(a_link(beta=1e-6), OPTIMIZER, work=without_cycles())
    values = sum(math.prod(its.shape) for name, its in parameters(MODEL).items() if name != "embedding")
    assert found.sharing_seconds == pytest.approx(2 * 4 * values * 1e-6)


# --- a pipeline ------------------------------------------------------------------------------------------


def test_the_lower_rank_has_the_layers() -> None:
    """2 x 4 x 32 x 56 and 2 x 4 x 32 x 64 multiplications below, 1000 x 32 above, of 4, 4 and 6 each."""
    below, above = held_by_ranks(WORK, 2)
    layers, output = 4 * 32 * (24 + 32) + 4 * 32 * (32 + 32), 1000 * 32
    assert (below.forward, above.forward) == (1, 0)
    assert below.backward == pytest.approx(4 * layers / (4 * layers + 6 * output))
    assert below.backward + above.backward == pytest.approx(1)
    assert below.width == 32
    assert above.names == {"output_kernel", "output_bias"}


@pytest.mark.parametrize("together", [1, 2, 4])
def test_backwards_overlap_where_they_are_several(together: int) -> None:
    """The upper rank takes longer: it works without a pause once all forwards are there, and the lower one has a last part."""
    work = without_cycles(backward_tokens=together * TOKENS)
    found = of(a_link(), LAYERS, ranks=2, work=work)
    _, above = held_by_ranks(work, 2)
    count = 4 // together
    upper = count * above.backward * (BASE + together * BACKWARD)
    lower = (1 - above.backward) * (BASE + together * BACKWARD)
    updates = UPDATE * max(rank.update for rank in held_by_ranks(work, 2))
    assert found.step_seconds == pytest.approx(4 * FORWARD + upper + lower + updates)


def test_messages_of_mpi_travel_beside_the_work() -> None:
    """A message takes as long as a forward: over Horovod's all-to-all the rank above takes it when it comes to it."""
    size = TOKENS * 32 * 4
    over_gloo = a_link(beta=FORWARD / size)
    pairs = Pairs(("a", "b", "c", "d"), ((0.0,) * 4,) * 4, ((FORWARD / size,) * 4,) * 4)
    by_mpi = replace(over_gloo, pairs=pairs)
    work = without_cycles()
    slow, fast = (of(link, LAYERS, ranks=2, work=work) for link in (over_gloo, by_mpi))
    assert fast.exchange_seconds <= slow.exchange_seconds
    # Four forwards, one message behind the last; one with four gradients, between backwards.
    above = held_by_ranks(work, 2)[1]
    assert fast.exchange_seconds == pytest.approx(FORWARD + 4 * FORWARD + above.backward * (BASE + 4 * BACKWARD))


def test_copies_of_a_pipeline_sum_their_gradients() -> None:
    link = a_link(beta=1e-7)
    two, one = of(link, LAYERS, ranks=4), of(link, LAYERS, ranks=2)
    assert two.exposed_seconds > one.exposed_seconds
    assert two.exchange_seconds == pytest.approx(one.exchange_seconds)
    assert {name for op in two.operations for name in op.tensors} == {
        "gradient.embedding",
        *(f"gradient.lstm.{layer}.{of_layer}" for layer in (0, 1) for of_layer in ("input_kernel", "recurrent_kernel", "bias")),
    }


# --- a vocabulary ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [2, 4])
def test_bytes_are_those_that_are_counted_elsewhere(ranks: int) -> None:
    """A vocabulary of which every rank holds as many words that occur: one word."""
    found = of(a_link(beta=1e-9), VOCABULARY, ranks=ranks)
    words = 0.0
    for first, stop in ((0, 500), (500, 1000)):
        others = [distinct_words(1000, tokens, first, stop) for tokens in (TOKENS, 4 * TOKENS)]
        words = max(words, 4 * others[0] + others[1])
    expected = vocabulary_split_bytes(MODEL, data_size=ranks // 2, model_size=2, tokens=4 * TOKENS, words=words)
    rest = 0.0
    if ranks == 4:
        # Of two copies: which rows of the embedding were touched, and these.
        rest = 4 * 24 * distinct_words(1000, 4 * 4 * TOKENS) / 2
    flags = 2 * (ranks - 1) / ranks * 32
    assert found.sent_bytes == pytest.approx(expected + rest + flags)


def test_a_link_that_takes_no_time_leaves_the_compute() -> None:
    found = of(a_link(), VOCABULARY, ranks=2, work=without_cycles())
    sizes = {name: math.prod(its.shape) for name, its in parameters(MODEL).items()}
    split = sizes["embedding"] + sizes["output_kernel"] + sizes["output_bias"]
    update = UPDATE * (1 - split / 2 / sum(sizes.values()))
    assert found.step_seconds == pytest.approx(4 * FORWARD + BASE + 4 * BACKWARD + update)


def test_exchanges_are_waited_for() -> None:
    """Of each look-up, forward and backward, two of a step each; of the output those of outputs and targets.

    Statistics and returning gradients hide beside the output's work. Three gradients of the lowest layer, of two steps each, have
    left before what the last look-up asks for.
    """
    found = of(a_link(alpha=0.001), VOCABULARY, ranks=2, work=without_cycles())
    assert found.exchange_seconds == pytest.approx(4 * 0.002 + 0.002 + 3 * 0.002 + 0.002)


def test_a_sampled_softmax_is_refused() -> None:
    sampled = replace(MODEL, softmax="sampled", sampled_words=50)
    work = replace(WORK, model=sampled)
    with pytest.raises(ConfigError, match="--softmax sampled over a split vocabulary is not predicted yet"):
        of(a_link(model=sampled), VOCABULARY, work=work)


# --- the command -----------------------------------------------------------------------------------------


def test_a_command_tells_of_a_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    link, run = tmp_path / "link.json", tmp_path / "run.yaml"
    write_link(a_link(1e-4, 1e-8, 5e-4), link)
    run.write_text(
        yaml.safe_dump({"framework": "torch", "vocabulary_size": 1000, "embedding_size": 24, "hidden_size": 32, "batch_size": 4,
                        "sequence_length": 16, "backward_passes_per_step": 4, "model_parallel": 2})
    )  # fmt: skip
    assert main(["predict", "--link", str(link), "--config", str(run), "--ranks", "4"]) == 0
    assert "exchanges of the model" in capsys.readouterr().out
    assert main(["predict", "--link", str(link), "--config", str(run), "--ranks", "4", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["exchange_seconds"] > 0
    assert main(["predict", "--link", str(link), "--config", str(run), "--ranks", "3"]) == 2
    assert "the topology does not fit 3 rank(s)" in capsys.readouterr().err
    assert main(["plan", "--link", str(link), "--config", str(run), "--ranks", "2,4", "--target-batch", "512"]) == 2
    assert "--split vocabulary is not planned yet" in capsys.readouterr().err
