"""An adaptive softmax: its clusters, exact probabilities, the work that it saves, the same figures on any grid, its checkpoints.

Logits, losses and gradients by the reference are in test_adapters.py, generation in test_generation.py.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import launcher
import numpy as np
import pools
import pytest
from conftest import INSTALLED, MakeAdapter
from grids import alone, assert_halves_travelled, assert_same_figures, on_grid

import hvd_lm
from hvd_lm.config import ModelConfig, OptimizerConfig, RunConfig
from hvd_lm.errors import CheckpointError, ConfigError
from hvd_lm.job.topology import Topology
from hvd_lm.model.pipeline import multiplications, stages_of_ranks
from hvd_lm.model.split import shares
from hvd_lm.model.stages import parameters, stages
from hvd_lm.model.weights import initial_weights

V = 60
MODEL = ModelConfig(V, 12, 16, 1, softmax="adaptive", adaptive_cutoffs=(10, 30))


# --- clusters --------------------------------------------------------------------------------------------


def test_names_and_shapes() -> None:
    of_output = {name: one.shape for name, one in parameters(MODEL).items() if name.startswith("output")}
    assert of_output == {
        "output_kernel": (12, 16),
        "output_bias": (12,),
        "output.tail.0.projection_kernel": (4, 16),
        "output.tail.0.kernel": (20, 4),
        "output.tail.1.projection_kernel": (1, 16),
        "output.tail.1.kernel": (30, 1),
    }


@pytest.mark.skipif("torch" not in INSTALLED, reason="PyTorch is not installed")
@pytest.mark.parametrize(("units", "division"), [(16, 4.0), (50, 3.0), (200, 1.0), (1024, 2.5)])
def test_widths_are_those_of_pytorch(units: int, division: float) -> None:
    from torch import nn

    model = replace(MODEL, hidden_size=units, adaptive_division=division)
    judge = nn.AdaptiveLogSoftmaxWithLoss(units, V, model.adaptive_cutoffs, division)
    shapes = [one.shape for name, one in parameters(model).items() if name.startswith("output.tail")]
    assert shapes == [tuple(weight.shape) for weight in judge.tail.parameters()]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"adaptive_cutoffs": ()}, "--softmax adaptive needs --adaptive-cutoffs"),
        ({"adaptive_cutoffs": (30, 10)}, "--adaptive-cutoffs 30 10 must be above 0, and ascend"),
        ({"adaptive_cutoffs": (0, 10)}, "--adaptive-cutoffs 0 10 must be above 0, and ascend"),
        ({"adaptive_cutoffs": (10, 60)}, "--adaptive-cutoffs 10 60 must end below the vocabulary of 60 words"),
        ({"adaptive_division": 0.5}, "--adaptive-division must be at least 1 and finite, not 0.5"),
        ({"adaptive_division": math.nan}, "--adaptive-division must be at least 1 and finite, not nan"),
        ({"adaptive_division": 5.0}, "--adaptive-division 5.0 leaves nothing of 16 units to the last of 2 clusters"),
        ({"tie_embedding": True, "embedding_size": 16}, "--tie-embedding does not go with --softmax adaptive"),
    ],
)
def test_clusters_that_cannot_be(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        replace(MODEL, **settings)
    assert str(caught.value).startswith(words)
    assert "\n" not in str(caught.value)


def test_an_open_vocabulary_is_checked_when_it_is_known() -> None:
    model = replace(MODEL, vocabulary_size=None)
    with pytest.raises(ConfigError, match="vocabulary of 20 words"):
        replace(model, vocabulary_size=20)


def test_a_vocabulary_of_clusters_is_not_divided() -> None:
    with pytest.raises(ConfigError, match="the clusters of --softmax adaptive are not divided over model ranks"):
        shares(MODEL, Topology(0, 1, 2, "vocabulary"))


def test_the_planner_of_layers_knows_what_it_costs() -> None:
    """With 200,000 words a full softmax is a rank's work, an adaptive one less than a layer's."""
    full = ModelConfig(200_000, 1024, 1024, 2)
    adaptive = replace(full, softmax="adaptive", adaptive_cutoffs=(2000, 20_000))
    kinds = [[stages(adaptive)[place].kind for place in of_rank] for of_rank in stages_of_ranks(adaptive, 2)]
    assert kinds == [["lookup", "lstm"], ["lstm", "adaptive"]]
    assert [stages(full)[place].kind for place in stages_of_ranks(full, 2)[1]] == ["output"]
    narrow = 256 * (18_000 + 1024), 64 * (180_000 + 1024)
    ends = [math.log(end + 1) for end in (2000, 20_000, 200_000)]
    expected = 2002 * 1024 + (narrow[0] * (ends[1] - ends[0]) + narrow[1] * (ends[2] - ends[1])) / ends[2]
    assert multiplications(stages(adaptive)[-1]) == pytest.approx(expected)


# --- what it computes ------------------------------------------------------------------------------------


def tokens(seed: int, below: int = V, steps: int = 7) -> Any:
    """Inputs, and targets below a word, some of them ignored."""
    generator = np.random.default_rng(seed)
    targets = generator.integers(0, below, (steps, 5), dtype=np.int32)
    targets[2:, 1] = -1
    return generator.integers(0, V, (steps, 5), dtype=np.int32), targets


def test_probabilities_are_exact(make_adapter: MakeAdapter) -> None:
    """They are one together, and losses are their logs, over more tokens than a chunk."""
    adapter = make_adapter(MODEL)
    adapter.load_weights({name: 5 * value for name, value in initial_weights(MODEL, seed=2).items()})
    inputs, targets = tokens(0, steps=150)
    logits, _ = adapter.logits(inputs, adapter.zero_state(5))
    np.testing.assert_allclose(np.exp(logits.astype(np.float64)).sum(-1), 1, rtol=1e-5)
    losses = adapter.evaluate(inputs, targets, adapter.zero_state(5)).losses_TB
    expected = -np.take_along_axis(logits, np.maximum(targets, 0)[..., None], 2)[..., 0]
    np.testing.assert_allclose(losses, np.where(targets < 0, 0, expected), rtol=1e-5, atol=1e-6)


@pytest.mark.skipif("torch" not in INSTALLED, reason="PyTorch is not installed")
def test_it_is_that_of_pytorch(make_adapter: MakeAdapter) -> None:
    import torch
    from torch import nn

    adapter = make_adapter(MODEL)
    weights = {name: 5 * value for name, value in initial_weights(MODEL, seed=2).items()}
    adapter.load_weights(weights)
    judge = nn.AdaptiveLogSoftmaxWithLoss(16, V, MODEL.adaptive_cutoffs, head_bias=True)
    of_output = [torch.tensor(value) for name, value in weights.items() if name.startswith("output")]
    for parameter, value in zip(judge.parameters(), of_output, strict=True):
        parameter.data.copy_(value)
    inputs, targets = tokens(0)
    outputs_TBH = adapter.evaluate(inputs, targets, adapter.zero_state(5)).outputs_TBH
    expected = judge.log_prob(torch.tensor(outputs_TBH).flatten(0, 1)).detach().numpy().reshape(*inputs.shape, V)
    np.testing.assert_allclose(adapter.logits(inputs, adapter.zero_state(5))[0], expected, rtol=1e-5, atol=1e-5)


def test_only_targets_of_a_cluster_enter_it(make_adapter: MakeAdapter) -> None:
    """What is not a number in it touches no other token, nor their gradients; those of the cluster are zeros then, and there."""
    adapter = make_adapter(MODEL, OptimizerConfig())
    weights = initial_weights(MODEL, seed=2)
    for role in ("projection_kernel", "kernel"):
        weights[f"output.tail.1.{role}"][:] = np.nan
    adapter.load_weights(weights)
    inputs, targets = tokens(0)
    losses = adapter.evaluate(inputs, targets, adapter.zero_state(5)).losses_TB
    np.testing.assert_array_equal(np.isnan(losses), targets >= 30)
    for number in range(2):
        inputs, targets = tokens(number, below=30 if number else 10)
        adapter.accumulate(inputs, targets, adapter.zero_state(5), weight=0.1, last=number == 1)
    gradients = adapter.gradients()
    assert set(gradients) == set(weights)
    for name, gradient in gradients.items():
        assert np.isfinite(gradient).all(), name
        assert gradient.any() == (not name.startswith("output.tail.1")), name
    assert adapter.step(learning_rate=0.01, clip=1.0, unscale=1.0).applied


# --- ranks -----------------------------------------------------------------------------------------------


@pytest.mark.ranks
def test_figures_are_those_of_one_process(framework: str) -> None:
    """With dropout, clipping, ignored targets and short windows."""
    expected = alone(framework, "adaptive")[:20]
    assert (expected[:, 1] > 0.2).any(), "clipping took place"
    topologies = ({"split": "optimizer"}, {"split": "layers", "model_parallel": 2})
    for topology in topologies:
        assert_same_figures(on_grid(framework, 2, "adaptive", steps=20, **topology), expected)
    assert_halves_travelled(on_grid(framework, 2, "adaptive", steps=20, compression="fp16"), expected)


@pytest.mark.ranks
@pytest.mark.skipif(len(INSTALLED) < 2, reason="parity needs both frameworks")
def test_frameworks_agree() -> None:
    first, second = (alone(framework, "adaptive") for framework in INSTALLED)
    np.testing.assert_allclose(second, first, rtol=1e-4)


# --- checkpoints -----------------------------------------------------------------------------------------

FLAGS = [
    *(*launcher.TINY, "--hidden-size", "16", "--learning-rate", "0.02"),
    *("--softmax", "adaptive", "--adaptive-cutoffs", "20", "50", "--deterministic"),
]
TEXT = "the value of a name is what the statement says\nif it is not a name it is an expression\n" * 20


@pytest.mark.ranks
def test_a_run_goes_on_bit_for_bit_and_is_read_anywhere(framework: str, tmp_path: Path) -> None:
    """In the pipeline it was not begun in; validated as it is evaluated, in any framework."""
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    flags = ["--framework", framework, *FLAGS, "--validation-data", text]
    pools.hvd_lm(1, "train", "--out", tmp_path / "whole", *flags, "--steps", "6", "--batch-size", "4")
    for steps in ("3", "6"):
        pools.hvd_lm(1, "train", "--out", tmp_path / "parts", *flags, "--steps", steps, "--batch-size", "4", "--resume", "auto")
    whole = launcher.metrics(tmp_path / "whole")
    assert launcher.losses(tmp_path / "parts") == [row["loss"] for row in whole]
    split = ("--model-parallel", "2", "--split", "layers", "--batch-size", "4", "--steps", "8", "--resume", "auto")
    pools.hvd_lm(2, "train", "--out", tmp_path / "parts", *flags, *split)
    pools.hvd_lm(1, "train", "--out", tmp_path / "whole", *flags, "--batch-size", "4", "--steps", "8", "--resume", "auto")
    np.testing.assert_allclose(launcher.losses(tmp_path / "parts"), launcher.losses(tmp_path / "whole"), rtol=1e-5)
    validated = launcher.metrics(tmp_path / "whole")[-1]["validation_loss"]
    for reader in INSTALLED:
        flags = ["--checkpoint", tmp_path / "whole", "--data", text, "--framework", reader]
        printed = pools.hvd_lm(1, "evaluate", *flags).output
        (loss,) = (json.loads(line)["loss"] for line in printed.splitlines() if line.startswith("{"))
        assert loss == pytest.approx(validated, rel=1e-5)
    written = [
        "".join(hvd_lm.generate(tmp_path / "whole", "the value", length=12, framework=reader))  # type: ignore[arg-type]
        for reader in INSTALLED
    ]
    assert len(set(written)) == 1
    assert written[0].split()


@pytest.mark.ranks
def test_another_softmax_does_not_go_on(tmp_path: Path) -> None:
    out = tmp_path / "run"
    pools.hvd_lm(1, "train", "--framework", INSTALLED[0], "--out", out, *FLAGS, "--steps", "1", "--batch-size", "4")
    model = ModelConfig(97, 12, 16, softmax="adaptive", adaptive_cutoffs=(20, 60))
    for other, words in (
        (model, "the checkpoint has --adaptive-cutoffs (20, 50), this run (20, 60): make them equal"),
        (ModelConfig(97, 12, 16), "the checkpoint has --softmax adaptive, this run full: make them equal"),
    ):
        with pytest.raises(CheckpointError) as caught:
            hvd_lm.train(RunConfig(model=other, out=out, resume="auto"))
        assert words in str(caught.value)
