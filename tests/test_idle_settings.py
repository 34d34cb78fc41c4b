"""Settings without an effect are told, and those with one are not."""

from __future__ import annotations

import pytest

from hvd_lm.config import CommunicationConfig, ModelConfig, OptimizerConfig, RunConfig
from hvd_lm.idle_settings import idle_settings


@pytest.mark.parametrize(
    ("optimizer", "communication", "flags"),
    [
        ({}, {}, []),
        ({"momentum": 0.9}, {}, ["--momentum"]),
        ({"momentum": 0.9, "optimizer": "sgd"}, {}, []),
        ({"beta1": 0.8, "epsilon": 1e-6, "optimizer": "sgd"}, {}, ["--beta1", "--epsilon"]),
        ({"optimizer": "adamw"}, {}, ["--optimizer"]),
        ({"optimizer": "adamw", "weight_decay": 0.01, "beta1": 0.8}, {}, []),
        ({"average_patience": 2}, {}, ["--average-patience"]),
        ({"average_patience": 2, "optimizer": "asgd"}, {}, []),
        ({"base_batch_size": 8}, {}, ["--base-batch-size"]),
        ({"base_batch_size": 8, "learning_rate_scaling": "linear"}, {}, []),
        ({"final_learning_rate_fraction": 0.5}, {}, ["--final-learning-rate-fraction"]),
        ({"final_learning_rate_fraction": 0.5, "decay": "cosine"}, {}, []),
        ({"decay_factor": 0.5, "decay_start_epochs": 4}, {}, ["--decay-factor", "--decay-start-epochs"]),
        ({"decay_factor": 0.5, "decay_start_epochs": 4, "decay": "plateau"}, {}, ["--decay-start-epochs"]),
        ({"decay_factor": 0.5, "decay_start_epochs": 4, "decay": "step"}, {}, []),
        ({"decay_milestones": (2,), "decay": "step"}, {}, ["--decay-milestones"]),
        ({"decay_milestones": (2,), "decay": "milestones", "decay_factor": 0.1}, {}, []),
        ({}, {"loss_scale": 4.0}, ["--loss-scale"]),
        ({}, {"loss_scale": 4.0, "compression": "fp16"}, []),
        ({}, {"powersgd_rank": 2, "powersgd_start_steps": 0, "compression": "fp16"}, ["--powersgd-rank", "--powersgd-start-steps"]),
        ({}, {"powersgd_rank": 2, "powersgd_start_steps": 0, "compression": "powersgd"}, []),
        ({}, {"topk_share": 0.01, "topk_momentum": 0.9}, ["--topk-share", "--topk-momentum"]),
        ({}, {"topk_share": 0.01, "topk_momentum": 0.9, "topk_start_steps": 0, "compression": "topk"}, []),
    ],
)
def test_what_has_no_effect(optimizer: dict[str, object], communication: dict[str, object], flags: list[str]) -> None:
    config = RunConfig(optimizer=OptimizerConfig(**optimizer), communication=CommunicationConfig(**communication))  # type: ignore[arg-type]
    found = idle_settings(config)
    assert [said.split()[0] for said in found] == flags
    assert all(" has no effect without " in said for said in found)


def test_what_waits_for_validations_has_no_effect_without() -> None:
    config = RunConfig(patience=3, optimizer=OptimizerConfig(decay="plateau"))
    assert idle_settings(config) == []
    assert [said.split(" has no effect")[0] for said in idle_settings(config, validates=False)] == ["--patience", "--decay plateau"]
    assert idle_settings(RunConfig(), validates=False) == []


def test_locked_masks_have_no_effect_where_nothing_drops() -> None:
    assert idle_settings(RunConfig(model=ModelConfig(locked_dropout=True))) == ["--locked-dropout has no effect without --dropout"]
    assert idle_settings(RunConfig(model=ModelConfig(locked_dropout=True, output_dropout=0.1))) == []


def test_clusters_have_no_effect_without_their_softmax() -> None:
    (said,) = idle_settings(RunConfig(model=ModelConfig(adaptive_cutoffs=(2000,))))
    assert said == "--adaptive-cutoffs has no effect without --softmax adaptive"
    assert idle_settings(RunConfig(model=ModelConfig(softmax="adaptive", adaptive_cutoffs=(2000,), adaptive_division=2.0))) == []
