"""The output layer under its cross-entropy: forward and backward in one pass over chunks of tokens.

The logits [N, V], the largest activation of a language model, never exist as a whole, nor does their gradient (Hsu et al. 2024,
"Liger Kernel", arXiv:2410.10989, FusedLinearCrossEntropy). Gradients of the weights go straight to where they accumulate.

Shapes: K micro-batches, T time, B sequences, N tokens, V vocabulary, H units.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from hvd_lm.adapters.pytorch.model_group import ModelGroup
from hvd_lm.adapters.pytorch.products import add_product_to_gradient, add_to_gradient, product
from hvd_lm.adapters.pytorch.stages.sampled_softmax import SampledWords, accumulate_sampled
from hvd_lm.data.sources import IGNORED

CHUNK = 256
"""Tokens whose logits exist at a time: enough rows for the products to be as fast on a CPU as with all of them."""
ACCELERATOR_LOGITS = 1 << 26
"""How many logits an accelerator makes at a time (256 MiB): each chunk costs it launches, and its memory is large."""


def chunk_tokens(device: torch.device, vocabulary_size: int) -> int:
    """Tokens whose logits exist at a time on `device`."""
    return CHUNK if device.type == "cpu" else max(CHUNK, ACCELERATOR_LOGITS // vocabulary_size)


@dataclass(frozen=True)
class _Kept:
    """A micro-batch that waits for its backward."""

    outputs_TBH: Tensor
    targets_TB: Tensor
    weight: float
    sampled: SampledWords | None


class Output:
    """The last stage: what a model predicts from the outputs of the stage below, and how wrong that is."""

    def __init__(self, kernel_VH: nn.Parameter, bias_V: nn.Parameter) -> None:
        """The kernel may be a stage's below too; then it is not complete before that."""
        self.kernel, self.bias = kernel_VH, bias_V
        self.weights: tuple[nn.Parameter, ...] = (kernel_VH, bias_V)
        self._kept: list[_Kept] = []
        self._words, self._group = range(len(kernel_VH)), None
        self.touched: Tensor | None = None
        """Rows of the weights to whose gradients the last backward added; None for all."""

    _words: range
    """That this rank has."""
    _group: ModelGroup | None
    """Has the others."""

    def keep(self, outputs_TBH: Tensor, targets_TB: Tensor, weight: float, sampled: SampledWords | None = None) -> None:
        """Let a micro-batch wait; `weight` multiplies its gradient. It is judged against the words that were `sampled`, if any."""
        self._kept.append(_Kept(outputs_TBH, targets_TB, weight, sampled))

    def backward(self) -> tuple[Tensor, Tensor]:
        """Sum of the cross-entropies of all micro-batches that were kept (scalar), and its weighted gradient by their outputs,
        [K, T, B, H]; adds to the gradients of the weights."""
        if self._kept[0].sampled:
            return self._backward_of_sampled()
        self.touched = None
        return self._backward_of_all()

    def _backward_of_sampled(self) -> tuple[Tensor, Tensor]:
        """One by one: each has its own candidates."""
        kept, self._kept = self._kept, []
        parts = [
            accumulate_sampled(
                self.kernel,
                self.bias,
                of.outputs_TBH.flatten(0, 1),
                of.targets_TB.flatten(),
                of.weight,
                of.sampled,
                self._words,
                self._group,
            )
            for of in kept
            if of.sampled
        ]
        self.touched = torch.cat([part.touched for part in parts])
        loss = torch.stack([part.loss for part in parts]).sum()
        return loss, torch.stack([part.gradients_NH for part in parts]).view(len(kept), *kept[0].outputs_TBH.shape)

    def _backward_of_all(self) -> tuple[Tensor, Tensor]:
        targets = [kept.targets_TB.flatten() for kept in self._kept]
        weights = [
            target.new_full((), kept.weight, dtype=torch.float32).expand(len(target))
            for target, kept in zip(targets, self._kept, strict=True)
        ]
        shape = (len(self._kept), *self._kept[0].outputs_TBH.shape)
        outputs_NH = torch.cat([kept.outputs_TBH.flatten(0, 1) for kept in self._kept])
        loss, gradients_NH = self._backward_of_tokens(outputs_NH, torch.cat(targets), torch.cat(weights))
        self._kept.clear()
        return loss, gradients_NH.view(shape)

    def _backward_of_tokens(self, outputs_NH: Tensor, targets_N: Tensor, weights_N: Tensor) -> tuple[Tensor, Tensor]:
        """As `backward`, of tokens: the gradient is [N, H]."""
        return accumulate_cross_entropy(outputs_NH, self.kernel, self.bias, targets_N, weights_N, ignored=IGNORED)

    def logits(self, outputs_NH: Tensor) -> Tensor:
        """[N, V]"""
        return product(outputs_NH, self.kernel, bias_N=self.bias)

    def losses(self, outputs_TBH: Tensor, targets_N: Tensor) -> Tensor:
        """Cross-entropy of every target, [N]; 0 where it is ignored."""
        return cross_entropies(outputs_TBH.flatten(0, 1), self.kernel, self.bias, targets_N)


def cross_entropies(outputs_NH: Tensor, kernel_VH: Tensor, bias_V: Tensor | None, targets_N: Tensor) -> Tensor:
    """[N]; 0 where a target is ignored."""
    tokens = chunk_tokens(outputs_NH.device, len(kernel_VH))
    chunks = zip(torch.split(outputs_NH, tokens), torch.split(targets_N, tokens), strict=True)
    return torch.cat(
        [
            functional.cross_entropy(product(outputs, kernel_VH, bias_N=bias_V), targets, ignore_index=IGNORED, reduction="none")
            for outputs, targets in chunks
        ]
    )


@torch.no_grad()
def accumulate_cross_entropy(
    outputs_NH: Tensor, kernel_VH: Tensor, bias_V: Tensor | None, targets_N: Tensor, weights_N: Tensor, *, ignored: int
) -> tuple[Tensor, Tensor]:
    """Sum of the cross-entropies of all targets but those that are `ignored` (scalar).

    Adds the gradient of the sum weighted by `weights_N` to ``kernel_VH.grad`` and ``bias_V.grad``, and returns its gradient by the
    outputs, [N, H], as the second value.
    """
    loss = outputs_NH.new_zeros(())
    gradients_NH = torch.empty_like(outputs_NH)
    tokens = chunk_tokens(outputs_NH.device, len(kernel_VH))
    chunks = zip(*(torch.split(tensor, tokens) for tensor in (outputs_NH, targets_N, weights_N, gradients_NH)), strict=True)
    for outputs, targets, weights, gradients in chunks:
        # All in the memory of the logits: what is largest exists once.
        logits = product(outputs, kernel_VH, bias_N=bias_V)
        logits -= logits.amax(1, keepdim=True)
        by_logits, counts = logits, targets != ignored
        of_targets = torch.arange(len(targets), device=targets.device), targets.clamp(min=0)
        logits_of_targets = logits[of_targets]
        sums = by_logits.exp_().sum(1, keepdim=True)
        loss += ((sums[:, 0].log() - logits_of_targets) * counts).sum()
        by_logits /= sums
        by_logits[of_targets] -= 1
        # Weights of tokens go to the factors with H columns instead of the one with V.
        counted = counts * weights
        torch.mul(product(by_logits, kernel_VH.t()), counted[:, None], out=gradients)
        add_product_to_gradient(kernel_VH, by_logits, outputs * counted[:, None])
        if bias_V is not None:
            add_to_gradient(bias_V, torch.mv(by_logits.t(), counted))
    return loss, gradients_NH
