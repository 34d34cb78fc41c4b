"""Stages of TensorFlow by themselves: what the contract of an adapter (test_adapters.py) does not reach."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import reference_lstm
from conftest import INSTALLED
from numpy.typing import NDArray

from hvd_lm.adapters import adapter as make
from hvd_lm.config import ModelConfig, OptimizerConfig
from hvd_lm.model.split import whole
from hvd_lm.model.stages import stages
from hvd_lm.model.weights import initial_weights

if TYPE_CHECKING:
    from hvd_lm.adapters.tensorflow.weight import Weight

pytestmark = pytest.mark.skipif("tensorflow" not in INSTALLED, reason="TensorFlow is not installed")

T, B, D, H, V = 5, 3, 6, 4, 30
LAYER = ModelConfig(vocabulary_size=V, embedding_size=D, hidden_size=H, layers=1)


def layer_weights() -> dict[str, Weight]:
    """Of a layer, by role."""
    from hvd_lm.adapters.tensorflow.weight import Weight

    initial = initial_weights(LAYER, seed=3)
    weights = {role: Weight(whole(parameter)) for role, parameter in stages(LAYER)[1].parameters.items()}
    for weight in weights.values():
        weight.stored.assign(initial[weight.name])
    return weights


@pytest.mark.parametrize("units", [4, 16, 64, 1000])
def test_no_weight_stays_in_the_memory_it_came_in(units: int) -> None:
    """TensorFlow takes an array over where it may, by its address: weights would be here or there by chance."""
    from hvd_lm.adapters.tensorflow.weight import Arriving, Weight

    share = whole(stages(replace(LAYER, hidden_size=units))[1].parameters["recurrent_kernel"])
    for _ in range(8):
        arriving, weight = Arriving(share), Weight(share)
        assert arriving.add(0, draw(*share.shape, seed=1))
        weight.stored.assign(arriving.values)
        arriving.values[:] = 0
        np.testing.assert_array_equal(weight.stored.numpy(), draw(*share.shape, seed=1))


def draw(*shape: int, seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def test_weights_are_packed_as_cudnn_wants_them() -> None:
    """Kernel by kernel, gate by gate, row by row; the input biases are zeros, and their gradient is dropped."""
    from hvd_lm.adapters.tensorflow.stages.cudnn_lstm import pack, unpack

    kernel_4HD, recurrent_4HH, bias_4H = draw(4 * H, D, seed=1), draw(4 * H, H, seed=2), draw(4 * H, seed=3)
    flat = [gate.ravel() for kernel in (kernel_4HD, recurrent_4HH) for gate in np.split(kernel, 4)]
    expected = np.concatenate([*flat, *[np.zeros(H)] * 4, *np.split(bias_4H, 4)])
    packed = pack(kernel_4HD, recurrent_4HH, bias_4H)
    np.testing.assert_array_equal(packed, expected)
    gradient = draw(*packed.shape, seed=4)
    by_kernel, by_recurrent, by_bias = unpack(gradient, D, H)
    np.testing.assert_array_equal(by_kernel, gradient[: 4 * H * D].reshape(4 * H, D))
    np.testing.assert_array_equal(by_recurrent, gradient[4 * H * D : 4 * H * (D + H)].reshape(4 * H, H))
    np.testing.assert_array_equal(by_bias, gradient[-4 * H :])


def test_cudnn_graphs_have_the_shapes_of_the_contract() -> None:
    """They can be made everywhere; only a GPU runs them."""
    import tensorflow as tf

    from hvd_lm.adapters.tensorflow.stages.cudnn_lstm import CudnnLstm
    from hvd_lm.adapters.tensorflow.weight import Accumulation

    stage = CudnnLstm(layer_weights())

    def run(inputs: Any, state: Any, gradient: Any) -> Any:
        forwarded = [stage.forward(inputs, state, ()) for _ in range(2)]
        accumulation = Accumulation(stage.weights, first=True, send=lambda _: ())
        by_inputs = stage.backward([ran.tape for ran in forwarded], gradient, accumulation)
        inferred, _ = stage.infer(inputs, state)
        return forwarded[0].outputs, forwarded[0].state, inferred, tf.ensure_shape(by_inputs, (T, 2 * B, D))

    specs = [tf.TensorSpec(shape, tf.float32) for shape in ((T, B, D), (T, 2 * B, H))]
    graph = tf.function(run).get_concrete_function(specs[0], (tf.TensorSpec((B, H)),) * 2, specs[1])
    outputs, state, inferred, by_inputs = graph.structured_outputs
    assert [tuple(tensor.shape) for tensor in (outputs, inferred, *state)] == [(T, B, H)] * 2 + [(B, H)] * 2
    assert tuple(by_inputs.shape) == (T, 2 * B, D)


def test_a_stage_that_tensorflow_differentiates_is_as_if_written_by_hand() -> None:
    """The forward of the hand-written LSTM, differentiated, has the gradients of its backward; of micro-batches side by side."""
    import tensorflow as tf

    from hvd_lm.adapters.tensorflow.stages.base import Tensors
    from hvd_lm.adapters.tensorflow.stages.differentiated import DifferentiatedStage
    from hvd_lm.adapters.tensorflow.stages.lstm import Lstm
    from hvd_lm.adapters.tensorflow.weight import Accumulation

    class Differentiated(DifferentiatedStage):
        def compute(self, inputs_TBD: Any, state: Tensors, weights: Mapping[str, Any]) -> tuple[Any, Tensors]:
            h, c = state
            outputs = []
            for t in range(T):
                before = tf.matmul(inputs_TBD[t], weights["input_kernel"], transpose_b=True) + weights["bias"]
                before += tf.matmul(h, weights["recurrent_kernel"], transpose_b=True)
                i, f, g, o = tf.split(before, 4, axis=1)
                c = tf.sigmoid(f) * c + tf.sigmoid(i) * tf.tanh(g)
                h = tf.sigmoid(o) * tf.tanh(c)
                outputs.append(h)
            return tf.stack(outputs), (h, c)

    gradient = draw(T, 2 * B, H, seed=9)
    results = []
    for stage in (Lstm(layer_weights()), Differentiated(layer_weights(), D, H)):
        accumulation = Accumulation(stage.weights, first=True, send=lambda _: ())
        state: Any = (tf.zeros((B, H)), tf.zeros((B, H)))
        tapes = []
        for seed in (5, 6):
            ran = stage.forward(tf.constant(draw(T, B, D, seed=seed)), state, ())
            state = ran.state
            tapes.append(ran.tape)
        by_inputs = stage.backward(tapes, tf.constant(gradient), accumulation)
        results.append([ran.outputs, *state, by_inputs, *(weight.gradient for weight in stage.weights)])
    for by_hand, differentiated in zip(*results, strict=True):
        np.testing.assert_allclose(differentiated.numpy(), by_hand.numpy(), rtol=1e-5, atol=1e-6)


@pytest.fixture
def gpu() -> Iterator[None]:
    """A GPU that computes in float32, or the test does not run."""
    import tensorflow as tf

    if not tf.config.list_physical_devices("GPU"):
        pytest.skip("cuDNN needs a GPU")
    tf.config.experimental.enable_tensor_float_32_execution(False)
    yield
    tf.config.experimental.enable_tensor_float_32_execution(True)


@pytest.mark.usefixtures("gpu")
def test_cudnn_computes_what_the_reference_does() -> None:
    """Logits and gradients of two micro-batches that wait, in an adapter that has chosen cuDNN."""
    from hvd_lm.adapters.tensorflow.adapter import TensorFlowAdapter
    from hvd_lm.adapters.tensorflow.stages.cudnn_lstm import CudnnLstm

    model = ModelConfig(vocabulary_size=V, embedding_size=D, hidden_size=(8, H))
    adapter = make("tensorflow", threads=1)
    assert isinstance(adapter, TensorFlowAdapter)
    adapter.build(model, OptimizerConfig())
    assert sum(isinstance(stage, CudnnLstm) for stage in adapter._stages) == 2
    weights = initial_weights(model, seed=2)
    adapter.load_weights(weights)
    state, reference_state = adapter.zero_state(B), None
    expected = {name: np.zeros(value.shape) for name, value in weights.items()}
    for left in (1, 0):
        inputs, targets = np.random.default_rng(left).integers(0, V, (2, T, B), dtype=np.int32)
        logits, _ = adapter.logits(inputs, state)
        state = adapter.accumulate(inputs, targets, state, weight=0.5, last=left == 0, defer=left)
        outcome = reference_lstm.run(weights, inputs, targets, reference_state)
        reference_state = outcome.state
        np.testing.assert_allclose(logits, outcome.logits_TBV, rtol=1e-5, atol=1e-5)
        for name, gradient in outcome.gradients.items():
            expected[name] += 0.5 * gradient
    for name, gradient in adapter.gradients().items():
        np.testing.assert_allclose(gradient, expected[name], rtol=1e-4, atol=1e-5 * np.abs(expected[name]).max(), err_msg=name)


def test_a_step_needs_a_complete_window() -> None:
    adapter = make("tensorflow", threads=1)
    adapter.build(LAYER, OptimizerConfig())
    adapter.load_weights(initial_weights(LAYER, seed=2))
    tokens = np.zeros((T, B), np.int32)
    adapter.accumulate(tokens, tokens, adapter.zero_state(B), weight=1.0, last=False)
    with pytest.raises(RuntimeError, match="last=True"):
        adapter.step(learning_rate=0.1, clip=None, unscale=1.0)


def test_what_comes_in_blocks_is_set_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that was ever assigned to in part is copied by every dense read from then on."""
    from hvd_lm import adapter
    from hvd_lm.model import split

    monkeypatch.setattr(split, "BLOCK", 2 * D)
    made = adapter("tensorflow", threads=1)
    made.build(LAYER)
    expected = initial_weights(LAYER, seed=3)
    assigned: list[tuple[int, ...]] = []
    variable = made._values["embedding"]  # type: ignore[attr-defined]
    assign = type(variable).assign
    monkeypatch.setattr(type(variable), "assign", lambda self, value, *a: assigned.append(value.shape) or assign(self, value, *a))
    made.load_weights(expected)
    assert assigned.count((V, D)) == 1
    assert len(assigned) == len(expected)
    for name, array in made.weights().items():
        np.testing.assert_array_equal(array, expected[name])
