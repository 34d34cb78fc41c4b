"""Exports, loaded without hvd_lm, give the logits of the NumPy reference; refusals are one line and leave nothing."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import reference_lstm
from numpy.typing import NDArray
from safetensors import safe_open

from hvd_lm import checkpoint as checkpoints
from hvd_lm import export as exports
from hvd_lm.adapters.base import OptimizerState
from hvd_lm.checkpoint import Checkpoint, Progress
from hvd_lm.config import ModelConfig, OptimizerConfig
from hvd_lm.data.sources import Position
from hvd_lm.data.tokenizer import train_word_level
from hvd_lm.errors import CheckpointError, ConfigError, FrameworkError, HvdLmError
from hvd_lm.export import ExportConfig, export
from hvd_lm.model.stages import parameters, state_size
from hvd_lm.model.weights import Weights
from hvd_lm.plain_values import to_dict

T, B = 7, 5
TEXT = "\n".join(f"word{index} and word{index + 1}" for index in range(30)) + "\n"
TOKENIZER = train_word_level(TEXT, None)
V = TOKENIZER.vocabulary_size
PLAIN = ModelConfig(V, embedding_size=12, hidden_size=16, layers=2)
MODELS = {
    "plain": PLAIN,
    "shallow": replace(PLAIN, layers=1),
    "tied": ModelConfig(V, embedding_size=16, hidden_size=16, layers=2, tie_embedding=True),
    "deep": replace(PLAIN, layers=3, dropout=0.4),
}
UNEVEN = replace(PLAIN, hidden_size=(24, 16))
MULTIPLICATIVE = replace(PLAIN, cell="mlstm")
PROJECTED = replace(PLAIN, projection_size=10)
ANY_WIDTHS = {**MODELS, "uneven": UNEVEN}
ADAPTIVE = replace(PLAIN, softmax="adaptive", adaptive_cutoffs=(5, 20))
UNEVEN_MULTIPLICATIVE = replace(UNEVEN, cell="mlstm", dropout=0.2)
OTHERS = {"adaptive": ADAPTIVE, "mlstm": MULTIPLICATIVE, "uneven mlstm": UNEVEN_MULTIPLICATIVE, "projected": PROJECTED}
ANY = {**ANY_WIDTHS, **OTHERS}
FORMATS = get_args(exports.ExportFormat)
PACKAGES = ["torch", "keras", "onnx"]
"""Formats that need the package of the same name."""

Tokens = NDArray[np.int32]
Export = Callable[..., Path]


def weights_of(model: ModelConfig) -> Weights:
    """No zeros, and large enough that every gate bends."""
    generator = np.random.default_rng(4)
    return {name: generator.normal(0, 0.4, one.shape).astype(np.float32) for name, one in parameters(model).items()}


def save(model: ModelConfig, run: Path) -> Path:
    """A checkpoint of `model` in `run`; returns its folder."""
    progress = Progress(0, Position((), 1, 1, 0), 0, 0, 0.0, "", np.zeros((2, 1, state_size(model)), np.float32))
    saved = Checkpoint(20, model, OptimizerConfig(), weights_of(model), OptimizerState(1, {}), TOKENIZER, progress)
    return checkpoints.save(saved, run, keep=1)


def of_all(models: dict[str, ModelConfig]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("model", models.values(), ids=models.keys())


@pytest.fixture
def made(tmp_path: Path) -> Export:
    """Exports a random checkpoint; skips where a package is not installed."""

    def make(format: str, model: ModelConfig = PLAIN) -> Path:
        if format in PACKAGES:
            pytest.importorskip(format)
        save(model, tmp_path / "run")
        return export(ExportConfig(checkpoint=tmp_path / "run", format=format, out=tmp_path / "out"))

    return make


def random_tokens(steps: int = T, sequences: int = B) -> Tokens:
    return np.random.default_rng(steps).integers(0, V, (steps, sequences), dtype=np.int32)


def reference(model: ModelConfig, tokens_TB: Tokens, state: reference_lstm.State | None = None) -> reference_lstm.Outcome:
    return reference_lstm.run(weights_of(model), tokens_TB, tokens_TB, state)


def assert_close(actual: NDArray[np.float32], expected: NDArray[np.float64]) -> None:
    assert actual.dtype == np.float32
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def run_docstring(module: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, **names: Any) -> dict[str, Any]:
    """What the example in a module's docstring leaves behind, run in the folder of an export."""
    example = "\n".join(line for line in module.__doc__.splitlines() if not line or line.startswith("    "))
    assert "hvd_lm" not in example
    monkeypatch.chdir(folder)
    exec(textwrap.dedent(example), names)
    return names


# --- the weights -----------------------------------------------------------------------------------------


@of_all(MODELS)
def test_torch_module_gives_the_logits_of_the_reference(made: Export, model: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = made("torch", model)
    import torch

    from hvd_lm.adapters.export import pytorch as export_pytorch

    plain = run_docstring(export_pytorch, folder, monkeypatch)["model"]
    tokens = random_tokens()
    with torch.no_grad():
        logits, (h, c) = plain(torch.from_numpy(tokens).long())
    outcome = reference(model, tokens)
    assert_close(logits.numpy(), outcome.logits_TBV)
    assert_close(h.numpy(), np.stack([h for h, _ in outcome.state]))
    assert_close(c.numpy(), np.stack([c for _, c in outcome.state]))


def test_torch_file_holds_a_tied_embedding_once(made: Export) -> None:
    folder = made("torch", MODELS["tied"])
    import torch

    state = torch.load(folder / "model.pt", weights_only=True)
    assert state["output.weight"].data_ptr() == state["embedding.weight"].data_ptr()
    assert not state["lstm.bias_hh_l1"].any()


@of_all(ANY_WIDTHS)
def test_keras_model_gives_the_logits_of_the_reference(made: Export, model: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = made("keras", model)
    import keras

    from hvd_lm.adapters.export import keras as export_keras

    tokens = random_tokens()
    names = run_docstring(export_keras, folder, monkeypatch, tokens_BT=tokens.T)
    logits_BTV = keras.ops.convert_to_numpy(names["logits_BTV"])
    assert_close(logits_BTV.swapaxes(0, 1), reference(model, tokens).logits_TBV)
    other = random_tokens(2 * T, 1)
    assert_close(names["model"].predict(other.T, verbose=0).swapaxes(0, 1), reference(model, other).logits_TBV)


def call_onnx(session: Any, tokens_TB: Tokens, h: NDArray[np.float32], c: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    return session.run(["logits", "h", "c"], {"tokens": tokens_TB.astype(np.int64), "h0": h, "c0": c})  # type: ignore[no-any-return]


def as_onnx_has_it(state: Sequence[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """h and c from those of each layer: [L, B, H], or [1, B, U] where layers differ in width."""
    even = len({h.shape for h, _ in state}) == 1
    h, c = (np.stack(kind) if even else np.concatenate(kind, axis=1)[None] for kind in zip(*state, strict=True))
    return h, c


@of_all(ANY_WIDTHS)
def test_onnx_graph_gives_the_logits_of_the_reference(made: Export, model: ModelConfig) -> None:
    """At any T and B, from a state that is not zero, and carried over two calls."""
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(made("onnx", model) / "model.onnx")
    generator = np.random.default_rng(0)
    for steps, sequences in ((T, B), (1, 1), (2 * T, 2)):
        state = [generator.normal(0, 0.5, (2, sequences, units)).astype(np.float32) for units in model.units]
        tokens = random_tokens(2 * steps, sequences)
        outcome = reference(model, tokens, [(h.astype(np.float64), c.astype(np.float64)) for h, c in state])
        first, h, c = call_onnx(session, tokens[:steps], *as_onnx_has_it(state))
        second, h, c = call_onnx(session, tokens[steps:], h, c)
        assert_close(np.concatenate((first, second)), outcome.logits_TBV)
        for actual, expected in zip((h, c), as_onnx_has_it(outcome.state), strict=True):
            assert_close(actual, expected)


@pytest.mark.parametrize(("model", "state"), [(PLAIN, [2, "B", 16]), (UNEVEN, [1, "B", 40])], ids=["plain", "uneven"])
def test_onnx_graph_declares_its_axes(made: Export, model: ModelConfig, state: list[int | str]) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(made("onnx", model) / "model.onnx")
    assert {i.name: (i.type, i.shape) for i in session.get_inputs()} == {
        "tokens": ("tensor(int64)", ["T", "B"]),
        "h0": ("tensor(float)", state),
        "c0": ("tensor(float)", state),
    }
    assert {o.name: o.shape for o in session.get_outputs()} == {"logits": ["T", "B", V], "h": state, "c": state}


def test_onnx_weights_too_large_for_one_file(made: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    from hvd_lm.adapters.export import onnx as export_onnx

    monkeypatch.setattr(export_onnx, "LARGEST_FILE", 0)
    folder = made("onnx")
    assert (folder / "model.onnx.data").stat().st_size > (folder / "model.onnx").stat().st_size
    tokens = random_tokens()
    zeros = np.zeros((2, B, 16), np.float32)
    logits, _, _ = call_onnx(onnxruntime.InferenceSession(folder / "model.onnx"), tokens, zeros, zeros)
    assert_close(logits, reference(PLAIN, tokens).logits_TBV)


@of_all(ANY)
def test_safetensors_are_the_canonical_weights(made: Export, model: ModelConfig) -> None:
    with safe_open(made("safetensors", model) / "model.safetensors", "np") as file:
        assert {name: json.loads(value) for name, value in file.metadata().items()} == to_dict(model)
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    expected = weights_of(model)
    assert arrays.keys() == expected.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, expected[name], strict=True)


# --- beside the weights ----------------------------------------------------------------------------------


@pytest.mark.parametrize("format", FORMATS)
def test_export_is_usable_alone(made: Export, format: str) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    folder = made(format)
    file = {"torch": "model.pt"}.get(format, f"model.{format}")
    assert sorted(path.name for path in folder.iterdir()) == sorted([file, "model.json", "tokenizer.json"])
    assert [path.name for path in folder.parent.iterdir() if path.name.startswith(".")] == []
    description = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    assert description == {
        "format": format,
        "model": to_dict(PLAIN),
        "tokenizer": {"kind": "word", "line_break_id": TOKENIZER.end_of_line_id, "unknown_id": TOKENIZER.unknown_id},
        "step": 20,
    }
    loaded = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert loaded.encode("word3 and word4").ids == TOKENIZER.encode_prompt("word3 and word4").tolist()


ALONE = """
import sys
sys.modules["horovod"] = None
from hvd_lm.export import ExportConfig, export
checkpoint, format, out = sys.argv[1:]
export(ExportConfig(checkpoint=checkpoint, format=format, out=out))
print(*sorted({"torch", "tensorflow", "keras", "onnx"} & set(sys.modules)))
"""


@pytest.mark.parametrize("format", FORMATS)
def test_only_what_the_format_needs_is_imported(tmp_path: Path, format: str) -> None:
    """No Horovod, no other framework, and nothing said about it."""
    if format in PACKAGES:
        pytest.importorskip(format)
    save(PLAIN, tmp_path)
    command = [sys.executable, "-c", ALONE, str(tmp_path), format, str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    loaded = set(done.stdout.split())
    if format == "keras":
        loaded -= {"tensorflow", "torch"}  # what computes for it is the user's choice
    assert loaded == {format} & set(PACKAGES)


# --- refusals --------------------------------------------------------------------------------------------


def refusal(config: ExportConfig, kind: type[HvdLmError]) -> str:
    """The message of the error that an export gives: one line; nothing is left behind."""
    before = sorted(config.out.parent.rglob("*"))
    with pytest.raises(kind) as caught:
        export(config)
    assert sorted(config.out.parent.rglob("*")) == before
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


def test_missing_checkpoint(tmp_path: Path) -> None:
    config = ExportConfig(checkpoint=tmp_path / "nowhere", format="safetensors", out=tmp_path / "out")
    message = refusal(config, CheckpointError)
    assert "no checkpoint" in message
    assert "nowhere" in message


def test_out_that_holds_something(tmp_path: Path) -> None:
    run = save(PLAIN, tmp_path / "run")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine", encoding="utf-8")
    for out in (tmp_path / "out", tmp_path / "out" / "notes.txt"):
        assert f"{out} exists already" in refusal(ExportConfig(checkpoint=run, format="safetensors", out=out), ConfigError)


def test_out_below_a_file(tmp_path: Path) -> None:
    run = save(PLAIN, tmp_path / "run")
    (tmp_path / "file").touch()
    config = ExportConfig(checkpoint=run, format="safetensors", out=tmp_path / "file" / "out")
    assert "cannot write to --out" in refusal(config, ConfigError)


def test_out_that_is_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is filled, not replaced, so that the shell that stands in it keeps its folder."""
    run = save(PLAIN, tmp_path / "run")
    (tmp_path / "here").mkdir()
    identity = (tmp_path / "here").stat().st_ino
    monkeypatch.chdir(tmp_path / "here")
    export(ExportConfig(checkpoint=run, format="safetensors", out=Path()))
    assert (tmp_path / "here").stat().st_ino == identity
    assert sorted(path.name for path in Path().iterdir()) == ["model.json", "model.safetensors", "tokenizer.json"]


@pytest.mark.parametrize("out", ["empty", "new", "below/deeper"])
def test_out_that_is_empty_or_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str) -> None:
    save(PLAIN, tmp_path / "run")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    assert export(ExportConfig(checkpoint="run", format="safetensors", out=out)) == Path(out)  # type: ignore[arg-type]
    assert (tmp_path / out / "model.safetensors").is_file()


def test_partial_export_of_an_earlier_try_is_replaced(tmp_path: Path, made: Export) -> None:
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "model.pt").write_bytes(b"half")
    assert not (made("safetensors") / "model.pt").exists()


def test_disk_that_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = save(PLAIN, tmp_path / "run")

    def full_disk(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exports, "save_file", full_disk)
    config = ExportConfig(checkpoint=run, format="safetensors", out=tmp_path / "out")
    assert "No space left on device" in refusal(config, ConfigError)


@pytest.mark.parametrize(
    ("format", "model", "words"),
    [
        ("torch", UNEVEN, "--format torch cannot hold layers of 24, 16 units: use --format keras or onnx or safetensors"),
        *((name, MULTIPLICATIVE, f"--format {name} cannot hold mlstm cells: use --format safetensors") for name in PACKAGES),
        *((name, ADAPTIVE, f"--format {name} cannot hold an adaptive softmax: use --format safetensors") for name in PACKAGES),
        *(
            (name, PROJECTED, f"--format {name} cannot hold LSTM cells with a projection: use --format safetensors")
            for name in PACKAGES
        ),
    ],
)
def test_model_that_a_format_cannot_hold(tmp_path: Path, format: exports.ExportFormat, model: ModelConfig, words: str) -> None:
    run = save(model, tmp_path / "run")
    assert refusal(ExportConfig(checkpoint=run, format=format, out=tmp_path / "out"), ConfigError) == words


@pytest.mark.parametrize("format", PACKAGES)
def test_package_that_is_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str) -> None:
    run = save(PLAIN, tmp_path / "run")
    known = exports._FORMATS[format]
    monkeypatch.delitem(sys.modules, known.module, raising=False)
    monkeypatch.setitem(sys.modules, format, None)
    message = refusal(ExportConfig(checkpoint=run, format=format, out=tmp_path / "out"), FrameworkError)
    assert format in message
    assert f"pip install 'hvd_lm[{known.extra}]'" in message


def test_extras_that_errors_name_are_those_of_the_package() -> None:
    setup = (Path(__file__).parent.parent / "setup.py").read_text(encoding="utf-8")
    assert [known.extra for known in exports._FORMATS.values() if f'"{known.extra}": [' not in setup] == []


def test_unknown_format(tmp_path: Path) -> None:
    run = save(PLAIN, tmp_path / "run")
    config = ExportConfig(checkpoint=run, format="pickle", out=tmp_path / "out")  # type: ignore[arg-type]
    message = refusal(config, ConfigError)
    assert "pickle" in message
    assert all(format in message for format in FORMATS)
