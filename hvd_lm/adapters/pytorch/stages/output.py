"""The output layer under its cross-entropy in PyTorch: forward and backward in one pass over chunks of tokens.

The logits [N, V], the largest activation of a language model, never exist as a whole, nor does their gradient (Hsu et al. 2024,
"Liger Kernel", arXiv:2410.10989, FusedLinearCrossEntropy). Gradients of the weights go straight to where they accumulate.

Shapes: N tokens, V vocabulary, H units.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hvd_lm.adapters.pytorch.products import add_product_to_gradient, add_to_gradient, product

CHUNK = 256
"""Tokens whose logits exist at a time: enough rows for the products to be as fast as with all of them."""


@torch.no_grad()
def accumulate_cross_entropy(
    outputs_NH: Tensor, kernel_VH: Tensor, bias_V: Tensor, targets_N: Tensor, weights_N: Tensor, *, ignored: int
) -> tuple[Tensor, Tensor]:
    """Sum of the cross-entropies of all targets but those that are `ignored` (scalar).

    Adds the gradient of the sum weighted by `weights_N` to ``kernel_VH.grad`` and ``bias_V.grad``, and returns its gradient by the
    outputs, [N, H], as the second value.
    """
    loss = outputs_NH.new_zeros(())
    gradients_NH = torch.empty_like(outputs_NH)
    chunks = zip(*(torch.split(tensor, CHUNK) for tensor in (outputs_NH, targets_N, weights_N, gradients_NH)), strict=True)
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
        add_to_gradient(bias_V, torch.mv(by_logits.t(), counted))
    return loss, gradients_NH
