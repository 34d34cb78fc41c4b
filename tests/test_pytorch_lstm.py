"""Every way to an LSTM layer in the PyTorch adapter gives what nn.LSTM and autograd give."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from hvd_lm.adapters.assembly import Divided  # noqa: E402
from hvd_lm.adapters.pytorch import stages  # noqa: E402
from hvd_lm.adapters.pytorch.memory import Weight  # noqa: E402
from hvd_lm.adapters.pytorch.stages.base import LayerState  # noqa: E402
from hvd_lm.adapters.pytorch.stages.differentiated import DifferentiatedStage, Operands  # noqa: E402
from hvd_lm.adapters.pytorch.stages.onednn_lstm import OneDnnLstm  # noqa: E402
from hvd_lm.adapters.pytorch.stages.torch_lstm import TorchLstm  # noqa: E402
from hvd_lm.config import ModelConfig  # noqa: E402
from hvd_lm.model.stages import parameters  # noqa: E402

STEPS, BATCH, WIDTH, UNITS = 6, 3, 5, 8


class DifferentiatedLstm(DifferentiatedStage):
    """An LSTM as a new cell would be written."""

    def compute(self, inputs_TBD: Any, state: LayerState, weights: Operands) -> tuple[Any, LayerState]:
        h, c = state
        outputs = []
        for before in weights.product(inputs_TBD, "input_kernel") + weights["bias"]:
            i, f, g, o = (before + weights.product(h, "recurrent_kernel")).chunk(4, dim=-1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            outputs.append(h)
        return torch.stack(outputs), (h, c)


class Layer:
    """A stage beside its weights."""

    def __init__(self, kind: type[OneDnnLstm | TorchLstm | DifferentiatedLstm]) -> None:
        self.input_kernel, self.recurrent_kernel = Weight(4 * UNITS, WIDTH), Weight(4 * UNITS, UNITS)
        self.bias = Weight(4 * UNITS)
        weights = {"input_kernel": self.input_kernel, "recurrent_kernel": self.recurrent_kernel, "bias": self.bias}
        self.stage = kind(weights, UNITS)
        self.backward, self.weights_changed = self.stage.backward, self.stage.weights_changed

    def forward(self, inputs: Any, state: LayerState, *, keep: int) -> tuple[Any, LayerState]:
        outputs, after = self.stage.forward(inputs, state, None, keep=keep)
        assert after is not None
        return outputs, after


@pytest.fixture(autouse=True)
def the_same_numbers_each_time() -> None:
    torch.manual_seed(1)


@pytest.fixture(params=[OneDnnLstm, TorchLstm, DifferentiatedLstm])
def layer(request: pytest.FixtureRequest) -> Layer:
    layer = Layer(request.param)
    set_weights(layer, seed=1)
    return layer


def set_weights(layer: Layer, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in (layer.input_kernel, layer.recurrent_kernel, layer.bias):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 3)
    layer.weights_changed()


def judge(layer: Layer) -> Any:
    lstm = torch.nn.LSTM(WIDTH, UNITS)
    with torch.no_grad():
        lstm.weight_ih_l0.copy_(layer.input_kernel)
        lstm.weight_hh_l0.copy_(layer.recurrent_kernel)
        lstm.bias_ih_l0.copy_(layer.bias)
        lstm.bias_hh_l0.zero_()
    return lstm


def zeros() -> Any:
    return torch.zeros(BATCH, UNITS), torch.zeros(BATCH, UNITS)


def ignore(_: Any) -> None:
    pass


def close(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("steps", [1, STEPS])
def test_outputs_and_state_are_those_of_nn_lstm_also_after_an_update(layer: Layer, steps: int) -> None:
    inputs = torch.randn(steps, BATCH, WIDTH)
    for seed in (1, 2):
        set_weights(layer, seed)
        lstm, state, expected_state = judge(layer), zeros(), None
        for _ in range(2):
            outputs, state = layer.forward(inputs, state, keep=0)
            expected, expected_state = lstm(inputs, expected_state)
            close(outputs, expected.detach())
            close(state, tuple(part[0].detach() for part in expected_state))


@pytest.mark.parametrize("room_is_known", [True, False])
@pytest.mark.parametrize("counts", [(1,), (3,), (2, 3, 1)])
def test_gradients_are_those_of_autograd(layer: Layer, counts: tuple[int, ...], room_is_known: bool) -> None:
    """Of groups of micro-batches that share a backward; the state goes on, gradients add up, and none passes to the one before."""
    lstm, state, expected_state = judge(layer), zeros(), None
    for count in counts:
        inputs = torch.randn(count, STEPS, BATCH, WIDTH)
        by_outputs = torch.randn(count, STEPS, BATCH, UNITS)
        expected_by_inputs = []
        for index, (batch, by_output) in enumerate(zip(inputs, by_outputs, strict=True)):
            _, state = layer.forward(batch, state, keep=count - index if room_is_known else 1)
            leaf = batch.clone().requires_grad_()
            expected, after = lstm(leaf, expected_state)
            expected_state = tuple(part.detach() for part in after)
            expected.backward(by_output)
            expected_by_inputs.append(leaf.grad)
        close(layer.backward(by_outputs, ignore), torch.stack(expected_by_inputs))
        close(state, tuple(part[0] for part in expected_state))
    found = [layer.input_kernel.grad, layer.recurrent_kernel.grad, layer.bias.grad]
    close(found, [lstm.weight_ih_l0.grad, lstm.weight_hh_l0.grad, lstm.bias_ih_l0.grad])


def test_a_text_that_is_only_read_leaves_what_waits_for_its_backward(layer: Layer) -> None:
    inputs, by_outputs = torch.randn(STEPS, BATCH, WIDTH), torch.randn(STEPS, BATCH, UNITS)
    layer.forward(inputs, zeros(), keep=1)
    layer.forward(torch.randn(2, 1, WIDTH), (torch.zeros(1, UNITS), torch.zeros(1, UNITS)), keep=0)
    leaf = inputs.clone().requires_grad_()
    judge(layer)(leaf)[0].backward(by_outputs)
    close(layer.backward(by_outputs[None], ignore), leaf.grad[None])


def test_lengths_may_change_from_backward_to_backward(layer: Layer) -> None:
    for steps in (STEPS, 2, STEPS):
        inputs, by_outputs = torch.randn(steps, BATCH, WIDTH), torch.randn(steps, BATCH, UNITS)
        layer.forward(inputs, zeros(), keep=1)
        leaf = inputs.clone().requires_grad_()
        judge(layer)(leaf)[0].backward(by_outputs)
        close(layer.backward(by_outputs[None], ignore), leaf.grad[None])


def test_a_gradient_is_complete_when_it_is_said_to_be_and_each_is_once_a_backward(layer: Layer) -> None:
    """The largest one first, while the others are still to come."""
    said: list[tuple[Any, Any]] = []
    layer.forward(torch.randn(STEPS, BATCH, WIDTH), zeros(), keep=1)
    layer.backward(torch.randn(1, STEPS, BATCH, UNITS), lambda weight: said.append((weight, weight.grad.clone())))  # type: ignore[union-attr]
    weights = [layer.recurrent_kernel, layer.input_kernel, layer.bias]
    if isinstance(layer.stage, DifferentiatedLstm):
        # In the order in which its forward uses them.
        weights = [layer.input_kernel, layer.bias, layer.recurrent_kernel]
    assert [id(weight) for weight, _ in said] == [id(weight) for weight in weights]
    assert all(torch.equal(weight.grad, gradient) for weight, gradient in said)


def test_cudnn_is_given_a_state_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """It refuses another one ("hx is not contiguous"); a state of several layers side by side comes in slices."""
    layer, given = Layer(TorchLstm), []
    original = torch.nn.LSTM.forward
    monkeypatch.setattr(torch.nn.LSTM, "forward", lambda self, inputs, state: given.extend(state) or original(self, inputs, state))
    of_all_layers = torch.zeros(2, BATCH, 2 * UNITS)
    h, c = of_all_layers[:, :, UNITS:]
    layer.forward(torch.randn(STEPS, BATCH, WIDTH), (h, c), keep=0)
    assert [part.is_contiguous() for part in given] == [True, True]


def test_the_faster_layer_is_taken_by_its_size() -> None:
    sizes = (UNITS, stages.ONEDNN_UNITS - 1, stages.ONEDNN_UNITS)
    model = ModelConfig(vocabulary_size=9, embedding_size=WIDTH, hidden_size=sizes)
    weights = {name: Weight(*parameter.shape) for name, parameter in parameters(model).items()}
    body = stages.make_stages(model, weights, Divided(range(5), {})).stages
    assert [type(stage) for stage in body if stage.units] == [TorchLstm, TorchLstm, OneDnnLstm]
