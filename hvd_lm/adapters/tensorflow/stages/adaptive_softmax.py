"""The output layer under an adaptive softmax (Grave et al. 2017, arXiv:1609.04309, section 4): exact, and cheap for frequent words.

    p(w | h) = softmax(head h)_w                                        of a word of the head
    p(w | h) = softmax(head h)_i * softmax(kernel_i projection_i h)_w   of a word of cluster i

Head and clusters are output layers, of words and clusters, and of a cluster's words: the cross-entropy of a token is the sum of
two, and only tokens whose target is in a cluster enter that. So gradients are the output layer's, and those of one more product.

Shapes: N tokens, M of them with a target in a cluster, S words of the head and clusters, H units, P width of a cluster.
"""

from __future__ import annotations

from collections.abc import Sequence

from hvd_lm.adapters.assembly import Cluster
from hvd_lm.adapters.tensorflow.products import by, by_transposed
from hvd_lm.adapters.tensorflow.quiet import native_stderr_closed
from hvd_lm.adapters.tensorflow.stages.output import Output, accumulate_cross_entropy, cross_entropies
from hvd_lm.adapters.tensorflow.weight import Accumulation, Weight

with native_stderr_closed():
    import tensorflow as tf


class AdaptiveOutput(Output):
    """The last stage; its logits are log probabilities."""

    def __init__(self, kernel_SH: Weight, bias_S: Weight, clusters: Sequence[Cluster]) -> None:
        super().__init__(kernel_SH, bias_S)
        self._clusters = clusters
        self._head = clusters[0].words.start
        of_clusters = ((cluster.projection_kernel, cluster.kernel) for cluster in clusters)
        self.weights = (kernel_SH, bias_S, *(weight for pair in of_clusters for weight in pair))

    def logits(self, outputs_NH: tf.Tensor) -> tf.Tensor:
        head_NS = tf.nn.log_softmax(super().logits(outputs_NH))
        parts = [head_NS[:, : self._head]]
        for cluster in self._clusters:
            within = by_transposed(by_transposed(outputs_NH, cluster.projection_kernel.value), cluster.kernel.value)
            of_cluster = head_NS[:, self._head + cluster.place]
            parts.append(tf.nn.log_softmax(within) + of_cluster[:, None])
        return tf.concat(parts, 1)

    def losses(self, outputs_TBH: tf.Tensor, targets_TB: tf.Tensor) -> tf.Tensor:
        outputs_NH, targets_N = self.rows(outputs_TBH), tf.reshape(targets_TB, (-1,))
        losses_N = cross_entropies(outputs_NH, self.kernel, self.bias, self._in_head(targets_N))
        for cluster in self._clusters:
            members_M, within_M = _members(cluster, targets_N)
            projected_MP = by_transposed(tf.gather(outputs_NH, members_M), cluster.projection_kernel.value)
            of_cluster = cross_entropies(projected_MP, cluster.kernel, None, within_M)
            losses_N = tf.tensor_scatter_nd_add(losses_N, members_M[:, None], of_cluster)
        return losses_N

    def _backward_of_tokens(
        self, outputs_NH: tf.Tensor, targets_N: tf.Tensor, weights_N: tf.Tensor, accumulation: Accumulation
    ) -> tuple[tf.Tensor, tf.Tensor]:
        gradients_NH, loss = super()._backward_of_tokens(outputs_NH, self._in_head(targets_N), weights_N, accumulation)
        for cluster in self._clusters:
            # One after the other, so that the logits of one exist at a time.
            with tf.control_dependencies([gradients_NH]):
                projection = cluster.projection_kernel
                members_M, within_M = _members(cluster, targets_N)
                outputs_MH = tf.gather(outputs_NH, members_M)
                projected_MP = by_transposed(outputs_MH, projection.value)
                weights_M = tf.gather(weights_N, members_M)
                by_projected_MP, of_cluster = accumulate_cross_entropy(
                    projected_MP, cluster.kernel, None, within_M, weights_M, accumulation
                )
                accumulation.add(projection, tf.matmul(by_projected_MP, outputs_MH, transpose_a=True))
                by_outputs_MH = by(by_projected_MP, projection.value)
                gradients_NH = tf.tensor_scatter_nd_add(gradients_NH, members_M[:, None], by_outputs_MH)
                loss += of_cluster
        return gradients_NH, loss

    def _in_head(self, targets_N: tf.Tensor) -> tf.Tensor:
        """What the head judges each token by: a word of its own, or the cluster that the target is in."""
        judged_N = targets_N
        for cluster in self._clusters:
            judged_N = tf.where(targets_N >= cluster.words.start, self._head + cluster.place, judged_N)
        return judged_N


def _members(cluster: Cluster, targets_N: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Tokens whose target is in the cluster, and which of its words that is, [M] each."""
    members_M = tf.where((targets_N >= cluster.words.start) & (targets_N < cluster.words.stop))[:, 0]
    return members_M, tf.gather(targets_N, members_M) - cluster.words.start
