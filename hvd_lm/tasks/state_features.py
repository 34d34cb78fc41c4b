"""The state of a language model after a text as the text's features, and a logistic regression with few of them.

Radford et al. 2017, "Learning to Generate Reviews and Discovering Sentiment", arXiv:1704.01444: tanh of the final cell state, an L1
penalty whose strength validation chooses, and the one unit that tells most.

Shapes: N texts, U units of all layers side by side from below, C classes; 2: h and c.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from hvd_lm.config import ModelConfig
from hvd_lm.conform import count
from hvd_lm.errors import CheckpointError, FrameworkError, why
from hvd_lm.evaluation.endings import Endings
from hvd_lm.model.stages import state_size
from hvd_lm.model.weights import Array
from hvd_lm.report.plots import COLOURS, LIGHT, Theme, png_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WEIGHTS, DESCRIPTION = "features.safetensors", "features.json"
STRENGTHS = tuple(2.0**power for power in range(-8, 2))
"""Of the data against the penalty (C of scikit-learn): those that Radford et al. try."""


def features(of: Endings) -> Array:
    """``float32 [B, U]``: tanh of the cell states."""
    found: Array = np.tanh(of.state_2BU[1])
    return found


@dataclass(frozen=True)
class Regression:
    """Says classes from features."""

    classes: tuple[str, ...]
    kernel_CU: Array
    bias_C: Array
    strength: float
    """That validation chose (C)."""
    strongest_unit: int
    """The one that changes most of what it says, over the texts; counted over all layers from below."""
    most_tokens: int
    """That were read of a text."""

    def logits(self, of: Endings) -> Array:
        """``float32 [B, C]``."""
        return self.of_features(features(of))

    def of_features(self, features_NU: Array) -> Array:
        """``float32 [N, C]``."""
        return (features_NU @ self.kernel_CU.T + self.bias_C).astype(np.float32)

    @property
    def used(self) -> int:
        """How many units it looks at."""
        return int((self.kernel_CU != 0).any(0).sum())


def fitted(
    classes: Sequence[str],
    training_NU: Array,
    numbers_N: NDArray[np.int32],
    validation_NU: Array,
    held_out_N: NDArray[np.int32],
    most_tokens: int,
) -> Regression:
    """Fitted to the training texts; of all strengths the one that finds most of the validation texts, and 1 if there are none.

    While it is fitted each unit has mean 0 and deviation 1, or the penalty would be one on units of small states.

    Raises FrameworkError if scikit-learn is absent.
    """
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.multiclass import OneVsRestClassifier
    except ImportError as error:
        raise FrameworkError("scikit-learn is not installed: pip install 'hvd_lm[sentiment]'") from error
    mean_U, deviation_U = training_NU.mean(0), training_NU.std(0)
    deviation_U = np.where(deviation_U > 0, deviation_U, 1)
    scaled_NU = (training_NU - mean_U) / deviation_U
    best, most = None, -1.0
    for strength in STRENGTHS if len(validation_NU) else (1.0,):
        one = LogisticRegression(C=strength, l1_ratio=1.0, solver="liblinear", tol=1e-3, random_state=0)
        model: Any = one if len(classes) == 2 else OneVsRestClassifier(one)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a fit that is not quite at its end: validation judges it
            model.fit(scaled_NU, numbers_N)
        kernels = [model.coef_] if len(classes) == 2 else [its.coef_ for its in model.estimators_]
        biases = [model.intercept_] if len(classes) == 2 else [its.intercept_ for its in model.estimators_]
        kernel_CU = _of_all(np.concatenate(kernels) / deviation_U)
        bias_C = _of_all(np.concatenate(biases)) - kernel_CU @ mean_U
        strongest = int((np.abs(kernel_CU).max(0) * deviation_U).argmax())
        found = Regression(tuple(classes), kernel_CU, bias_C, strength, strongest, most_tokens)
        share = float((found.of_features(validation_NU).argmax(1) == held_out_N).mean()) if len(validation_NU) else 0.0
        if share > most:
            best, most = found, share
    assert best is not None
    return best


def _of_all(of_second: NDArray[np.floating]) -> Array:
    """With a row of zeros for the first of two classes: a softmax over both is the logistic function."""
    rows = [np.zeros_like(of_second), of_second] if len(of_second) == 1 else [of_second]
    return np.concatenate(rows).astype(np.float32)


# --- files -----------------------------------------------------------------------------------------------


def save(regression: Regression, folder: Path) -> None:
    """Raises OSError."""
    save_file({"kernel": regression.kernel_CU, "bias": regression.bias_C}, folder / WEIGHTS)
    told = {
        "classes": regression.classes,
        "strength": regression.strength,
        "most_tokens": regression.most_tokens,
        "units_used": regression.used,
        "strongest_unit": regression.strongest_unit,
    }
    (folder / DESCRIPTION).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def load(folder: Path, model: ModelConfig) -> Regression | None:
    """That in `folder`, on the states of `model`; None if there is none. Raises CheckpointError if it is damaged."""
    if not (folder / DESCRIPTION).exists():
        return None
    try:
        told = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        classes, strength = tuple(map(str, told["classes"])), float(told["strength"])
        arrays = load_file(folder / WEIGHTS)
        shapes = {"kernel": (len(classes), state_size(model)), "bias": (len(classes),)}
        for name, shape in shapes.items():
            if arrays[name].shape != shape or arrays[name].dtype != np.float32:
                raise CheckpointError(f"{name} is {arrays[name].dtype} {list(arrays[name].shape)}, not float32 {list(shape)}")
        return Regression(
            classes, arrays["kernel"], arrays["bias"], strength, *map(count, (told["strongest_unit"], told["most_tokens"]))
        )
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read: {why(error)}") from error
    except (ValueError, KeyError, TypeError, AttributeError, SafetensorError, CheckpointError, RecursionError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise CheckpointError(f"the classifier {folder} cannot be used ({reason}): train it anew") from error


# --- pictures --------------------------------------------------------------------------------------------


def unit_png(classes: Sequence[str], unit: int, values_N: Array, numbers_N: NDArray[np.int32]) -> bytes:
    """A PNG file: how often a unit has which value after the texts of each class."""
    return png_of(lambda: draw(classes, unit, values_N, numbers_N), LIGHT)


def draw(classes: Sequence[str], unit: int, values_N: Array, numbers_N: NDArray[np.int32], theme: Theme = LIGHT) -> Figure:
    """The same as a matplotlib figure; classes are told apart by line and hatching, too."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), dpi=160, layout="constrained")
    axes = figure.subplots()
    edges = np.histogram_bin_edges(values_N, 40).tolist()
    for number, name in enumerate(classes):
        look: dict[str, Any] = {"color": COLOURS[number % len(COLOURS)], "linestyle": ("-", "--", "-.", ":")[number % 4]}
        axes.hist(values_N[numbers_N == number], edges, histtype="step", linewidth=1.6, label=name, **look)
    axes.set_xlabel(f"tanh of the cell state of unit {unit} after a text")
    axes.set_ylabel("texts")
    axes.set_title(f"The unit that tells most, {len(values_N):,} texts", loc="left", fontweight="bold")
    axes.grid(color=theme.grid, linewidth=0.6)
    axes.legend(frameon=False)
    return figure
