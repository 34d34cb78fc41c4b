"""The output layer under an adaptive softmax (Grave et al. 2017, arXiv:1609.04309, section 4): exact, and cheap for frequent words.

    p(w | h) = softmax(head h)_w                                        of a word of the head
    p(w | h) = softmax(head h)_i * softmax(kernel_i projection_i h)_w   of a word of cluster i

Head and clusters are output layers, of words and clusters, and of a cluster's words: the cross-entropy of a token is the sum of
two, and only tokens whose target is in a cluster enter that. So gradients are the output layer's, and those of one more product.

Shapes: N tokens, M of them with a target in a cluster, S words of the head and clusters, H units, P width of a cluster.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from hvd_lm.adapters.assembly import Cluster
from hvd_lm.adapters.pytorch.memory import gradient_by_rows
from hvd_lm.adapters.pytorch.products import add_product_to_gradient, product
from hvd_lm.adapters.pytorch.stages.output import Output, accumulate_cross_entropy, cross_entropies
from hvd_lm.data.sources import IGNORED


class AdaptiveOutput(Output):
    """The last stage; its logits are log probabilities."""

    def __init__(self, kernel_SH: nn.Parameter, bias_S: nn.Parameter, clusters: Sequence[Cluster]) -> None:
        super().__init__(kernel_SH, bias_S)
        self._clusters = clusters
        self._head = clusters[0].words.start
        of_clusters = ((cluster.projection_kernel, cluster.kernel) for cluster in clusters)
        self.weights = (kernel_SH, bias_S, *(weight for pair in of_clusters for weight in pair))

    def logits(self, outputs_NH: Tensor) -> Tensor:
        head_NS = functional.log_softmax(super().logits(outputs_NH), 1)
        parts = [head_NS[:, : self._head]]
        for cluster in self._clusters:
            within = product(product(outputs_NH, cluster.projection_kernel), cluster.kernel)
            of_cluster = head_NS[:, self._head + cluster.place]
            parts.append(functional.log_softmax(within, 1).add_(of_cluster[:, None]))
        return torch.cat(parts, 1)

    def losses(self, outputs_TBH: Tensor, targets_N: Tensor) -> Tensor:
        outputs_NH = outputs_TBH.flatten(0, 1)
        losses_N = cross_entropies(outputs_NH, self.kernel, self.bias, self._in_head(targets_N))
        for cluster in self._clusters:
            members_M, within_M = _members(cluster, targets_N)
            if len(members_M):
                projected_MP = product(outputs_NH[members_M], cluster.projection_kernel)
                losses_N[members_M] += cross_entropies(projected_MP, cluster.kernel, None, within_M)
        return losses_N

    def _backward_of_tokens(self, outputs_NH: Tensor, targets_N: Tensor, weights_N: Tensor) -> tuple[Tensor, Tensor]:
        loss, gradients_NH = super()._backward_of_tokens(outputs_NH, self._in_head(targets_N), weights_N)
        for cluster in self._clusters:
            members_M, within_M = _members(cluster, targets_N)
            if not len(members_M):
                # An update wants all gradients, and all ranks send them.
                for weight in (cluster.projection_kernel, cluster.kernel):
                    gradient_by_rows(weight)
                continue
            outputs_MH = outputs_NH[members_M]
            projected_MP = product(outputs_MH, cluster.projection_kernel)
            of_cluster, by_projected_MP = accumulate_cross_entropy(
                projected_MP, cluster.kernel, None, within_M, weights_N[members_M], ignored=IGNORED
            )
            add_product_to_gradient(cluster.projection_kernel, by_projected_MP, outputs_MH)
            gradients_NH[members_M] += product(by_projected_MP, cluster.projection_kernel.t())
            loss += of_cluster
        return loss, gradients_NH

    def _in_head(self, targets_N: Tensor) -> Tensor:
        """What the head judges each token by: a word of its own, or the cluster that the target is in."""
        judged_N = targets_N.clone()
        for cluster in self._clusters:
            judged_N[targets_N >= cluster.words.start] = self._head + cluster.place
        return judged_N


def _members(cluster: Cluster, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens whose target is in the cluster, and which of its words that is, [M] each."""
    members_M = ((targets_N >= cluster.words.start) & (targets_N < cluster.words.stop)).nonzero()[:, 0]
    return members_M, targets_N[members_M] - cluster.words.start
