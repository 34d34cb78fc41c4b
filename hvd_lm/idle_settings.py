"""Settings that a run was given and that change nothing in it: more often a misunderstanding than a wish."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from hvd_lm.config import CommunicationConfig, ModelConfig, OptimizerConfig, RunConfig


class _Needs(NamedTuple):
    """What a setting needs to act."""

    words: str
    hold: Callable[[RunConfig], bool]


_ADAM = _Needs("--optimizer adam or adamw", lambda config: config.optimizer.is_adam)
_SGD = _Needs("--optimizer sgd", lambda config: config.optimizer.optimizer == "sgd")
_ASGD = _Needs("--optimizer asgd", lambda config: config.optimizer.optimizer == "asgd")
_ADAGRAD = _Needs("--optimizer adagrad", lambda config: config.optimizer.optimizer == "adagrad")
_HALVES = _Needs("--compression fp16", lambda config: config.communication.compression == "fp16")
_POWERSGD = _Needs("--compression powersgd", lambda config: config.communication.compression == "powersgd")
_TOPK = _Needs("--compression topk", lambda config: config.communication.compression == "topk")
_ADAPTIVE = _Needs("--softmax adaptive", lambda config: config.model.softmax == "adaptive")
_NEEDS: Mapping[str, _Needs] = {
    "adaptive_cutoffs": _ADAPTIVE,
    "adaptive_division": _ADAPTIVE,
    "locked_dropout": _Needs("--dropout", lambda config: any(config.model.dropout_rates)),
    "beta1": _ADAM,
    "beta2": _ADAM,
    "epsilon": _ADAM,
    "momentum": _SGD,
    "average_patience": _ASGD,
    "initial_accumulator": _ADAGRAD,
    "base_batch_size": _Needs("--learning-rate-scaling", lambda config: config.optimizer.learning_rate_scaling != "none"),
    "final_learning_rate_fraction": _Needs(
        "--decay linear, cosine or exponential", lambda config: config.optimizer.decay in ("linear", "cosine", "exponential")
    ),
    "decay_factor": _Needs(
        "--decay step, milestones or plateau", lambda config: config.optimizer.decay in ("step", "milestones", "plateau")
    ),
    "decay_start_epochs": _Needs("--decay step", lambda config: config.optimizer.decay == "step"),
    "decay_milestones": _Needs("--decay milestones", lambda config: config.optimizer.decay == "milestones"),
    "powersgd_rank": _POWERSGD,
    "powersgd_start_steps": _POWERSGD,
    "powersgd_halves": _POWERSGD,
    "topk_share": _TOPK,
    "topk_momentum": _TOPK,
    "topk_start_steps": _TOPK,
    "reduce_start_steps": _Needs("--reduce-every above 1", lambda config: config.communication.reduce_every > 1),
    "loss_scale": _HALVES,
    "loss_scale_growth_steps": _HALVES,
}


def idle_settings(config: RunConfig, *, validates: bool = True) -> list[str]:
    """One sentence for each setting that is not at its default and has no effect beside the others, or without validations."""
    found = []
    if config.sample_prompt and config.sample_every is None:
        found.append("--sample-prompt has no effect without --sample-every")
    if config.optimizer.optimizer == "adamw" and not config.optimizer.weight_decay:
        found.append("--optimizer adamw has no effect without --weight-decay: it is adam then")
    if not validates:
        wants = {"--patience": config.patience is not None, "--decay plateau": config.optimizer.decay == "plateau"}
        wants["--optimizer asgd"] = config.optimizer.optimizer == "asgd"
        found += [f"{flag} has no effect without a text to validate on" for flag, is_given in wants.items() if is_given]
    sections = (
        (config.model, ModelConfig()),
        (config.optimizer, OptimizerConfig()),
        (config.communication, CommunicationConfig()),
    )
    for section, default in sections:
        for name, needs in _NEEDS.items():
            if hasattr(section, name) and getattr(section, name) != getattr(default, name) and not needs.hold(config):
                found.append(f"--{name.replace('_', '-')} has no effect without {needs.words}")
    return found
