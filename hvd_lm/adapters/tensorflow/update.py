"""The update of an optimizer step, as TensorFlow's raw operations: they work in the memory of weights and moments."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

from hvd_lm.adapters.base import Applied, OptimizerState
from hvd_lm.adapters.job import Group
from hvd_lm.adapters.tensorflow.graphs import Graph, graph_function
from hvd_lm.adapters.tensorflow.quiet import native_stderr_closed
from hvd_lm.adapters.tensorflow.weight import Weight, to_numpy
from hvd_lm.config import OptimizerConfig
from hvd_lm.job.topology import GroupName
from hvd_lm.model.split import Share
from hvd_lm.model.weights import Array

with native_stderr_closed():
    import horovod.tensorflow as hvd
    import tensorflow as tf


class _Gradient(NamedTuple):
    """Of a weight."""

    values: tf.Tensor
    rows: tf.Tensor | None = None
    """Those that `values` are; None for all."""


class _Rates(NamedTuple):
    """Of a step, each a number."""

    learning_rate: tf.Tensor
    """Adam's with its bias correction."""
    epsilon: tf.Tensor
    decay: tf.Tensor
    """AdamW: the share of itself that a weight loses."""
    share: tf.Tensor
    """asgd: that the weight after this step has in the average."""


class Update:
    """Adam, AdamW, SGD with or without momentum, averaged or not, or Adagrad, of `weights`.

    Adagrad (Duchi et al. 2011, JMLR 12): ``accumulator += gradient^2;  weight -= rate * gradient / sqrt(accumulator)``.
    """

    def __init__(
        self,
        config: OptimizerConfig,
        weights: Mapping[str, Weight],
        moment_shares: Mapping[str, Share],
        groups: Mapping[GroupName, Group],
        touched_rows: Callable[[Weight], tf.Tensor],
    ) -> None:
        """`touched_rows`: of a window, of a weight whose gradient comes `by_rows`."""
        self._groups, self._moment_shares, self._touched_rows = groups, moment_shares, touched_rows
        self._config, self._weights = config, weights
        self.applied_steps = 0
        self.averaged_since: int | None = None
        """asgd: updates that had been applied when averages began."""
        self.moments = {
            f"{kind}/{name}": tf.Variable(tf.fill(share.shape, config.initial_moment), name=f"{kind}_{name}", trainable=False)
            for kind in config.moments
            for name, share in moment_shares.items()
            if name in weights
        }
        signature = [*[tf.TensorSpec((), tf.float32)] * 6, tf.TensorSpec((), tf.bool)]
        self.function = Graph(self._graph, signature)

    def begin(self) -> None:
        """Set the moments to what they are before the first step."""
        for moment in self.moments.values():
            moment.assign(tf.fill(moment.shape, self._config.initial_moment))

    def state(self, *, copy: bool) -> OptimizerState:
        return OptimizerState(self.applied_steps, to_numpy(self.moments, copy=copy))

    def apply(self, learning_rate: float, clip: float | None, unscale: float, *, trusted: bool) -> Applied:
        """Of the gradients times `unscale`, clipped.

        It is not made, and nothing changes, if the norm is not finite or the window not `trusted`.
        """
        epsilon, decay = self._config.epsilon, self._config.weight_decay * learning_rate
        if self._config.is_adam:
            t = self.applied_steps + 1
            correction = math.sqrt(1.0 - self._config.beta2**t)
            learning_rate *= correction / (1.0 - self._config.beta1**t)
            epsilon *= correction
        share = 0.0 if self.averaged_since is None else 1.0 / (self.applied_steps + 1 - self.averaged_since)
        norm, made = self.function(learning_rate, epsilon, decay, share, math.inf if clip is None else clip, unscale, trusted)
        applied = bool(made)
        self.applied_steps += applied
        return Applied(float(norm), applied)

    def _graph(
        self,
        learning_rate: tf.Tensor,
        epsilon: tf.Tensor,
        decay: tf.Tensor,
        share: tf.Tensor,
        clip: tf.Tensor,
        unscale: tf.Tensor,
        trusted: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        by_rows = {weight.name: self._rows_of(weight) for weight in self._weights.values() if weight.by_rows}
        norm = self._global_norm(by_rows) * unscale
        made = tf.math.is_finite(norm) & trusted

        def update() -> tf.Operation:
            factor = unscale * tf.minimum(1.0, clip / norm)
            updated: list[tf.Operation] = []
            for weight in self._weights.values():
                # One after the other: a product that cannot take the gradient's memory is the only one then.
                with tf.control_dependencies(updated):
                    gradient = by_rows.get(weight.name) or _Gradient(weight.take_gradient())
                    gradient = gradient._replace(values=gradient.values * factor)
                    updated = [self._update_weight(weight, gradient, _Rates(learning_rate, epsilon, decay, share))]
            return tf.group(*updated)

        tf.cond(made, update, tf.no_op)
        for name, (values, rows) in by_rows.items():
            self._weights[name].gradient.scatter_update(tf.IndexedSlices(tf.zeros_like(values), rows))
        return norm, made

    def _rows_of(self, weight: Weight) -> _Gradient:
        rows = self._touched_rows(weight)
        return _Gradient(tf.gather(weight.gradient, rows), rows)

    def _global_norm(self, by_rows: Mapping[str, _Gradient]) -> tf.Tensor:
        """Of the gradients of all parameters, each counted once. Collective."""
        by_group: dict[GroupName | None, list[tf.Tensor]] = {}
        for weight in self._weights.values():
            share = self._moment_shares[weight.name]
            gradient = by_rows[weight.name].values if weight.by_rows else weight.gradient
            by_group.setdefault(share.divided_over, []).append(gradient if share.counts else tf.zeros(()))
        undivided = tf.linalg.global_norm(by_group.pop(None)) if None in by_group else tf.zeros(())
        if not by_group:
            return undivided
        squares = [tf.square(undivided)]
        for over, gradients in by_group.items():
            square = tf.square(tf.linalg.global_norm(gradients))
            process_set = self._groups[over].process_set  # type: ignore[index]
            squares.append(hvd.allreduce(square, name=f"norm.{over}", op=hvd.Sum, process_set=process_set))
        return tf.sqrt(tf.add_n(squares))

    def _update_weight(self, weight: Weight, gradient: _Gradient, rates: _Rates) -> tf.Operation:
        share = self._moment_shares[weight.name]
        if share == weight.share:
            return self._update(weight.name, weight.stored, gradient, rates)
        # The operations of an update take variables, and that of the gradient is empty by now.
        with tf.control_dependencies([gradient.values]):
            part = weight.gradient.assign(weight.stored[share.rows.start : share.rows.stop])
        with tf.control_dependencies([part]):
            updated = self._update(weight.name, weight.gradient, gradient, rates)
        with tf.control_dependencies([updated]):
            process_set = self._groups["data"].process_set
            rows = hvd.allgather(weight.take_gradient(), name=f"updated.{weight.name}", process_set=process_set)
        return weight.stored.assign(tf.ensure_shape(rows, weight.shape)).op

    def _update(self, name: str, variable: tf.Variable, gradient: _Gradient, rates: _Rates) -> tf.Operation:
        if not self._config.weight_decay:
            return self._move(name, variable.handle, gradient, rates)
        if self._config.optimizer == "adamw":
            with tf.control_dependencies([variable.assign(variable * (1.0 - rates.decay))]):
                return self._move(name, variable.handle, gradient, rates)
        decayed = gradient.values + self._config.weight_decay * variable
        return self._move(name, variable.handle, gradient._replace(values=decayed), rates)

    def _move(self, name: str, handle: tf.Tensor, gradient: _Gradient, rates: _Rates) -> tf.Operation:
        """By the gradient, weight decay aside."""
        (values, rows), (learning_rate, epsilon, *_) = gradient, rates
        if self._config.optimizer == "adagrad":
            accumulator = self.moments[f"accumulator/{name}"].handle
            with_both = {"var": handle, "accum": accumulator, "lr": learning_rate, "epsilon": 0.0, "grad": values}
            if rows is None:
                return tf.raw_ops.ResourceApplyAdagradV2(**with_both)
            return tf.raw_ops.ResourceSparseApplyAdagradV2(**with_both, indices=rows)
        if self._config.is_adam:
            # The kernel's own bias correction is float32 and puts epsilon inside; ours is in learning_rate and epsilon.
            return tf.raw_ops.ResourceApplyAdam(
                var=handle,
                m=self.moments[f"first/{name}"].handle,
                v=self.moments[f"second/{name}"].handle,
                beta1_power=0.0,
                beta2_power=0.0,
                lr=learning_rate,
                beta1=self._config.beta1,
                beta2=self._config.beta2,
                epsilon=epsilon,
                grad=values,
            )
        if self._config.optimizer == "asgd":
            moved = tf.raw_ops.ResourceApplyGradientDescent(var=handle, alpha=learning_rate, delta=values)
            with tf.control_dependencies([moved]):
                average, weight = self.moments[f"average/{name}"], self._weights[name].stored
                return average.assign_add((weight - average) * rates.share).op
        if self.moments:
            accumulator = self.moments[f"momentum/{name}"].handle
            return tf.raw_ops.ResourceApplyMomentum(
                var=handle, accum=accumulator, lr=learning_rate, grad=values, momentum=self._config.momentum
            )
        return tf.raw_ops.ResourceApplyGradientDescent(var=handle, alpha=learning_rate, delta=values)


class DynamicUpdate:
    """Of dynamic evaluation: a plain step, and a pull back to the weights as they are when it is made."""

    def __init__(self, weights: Mapping[str, Weight], rates: Mapping[str, Array], decays: Mapping[str, Array]) -> None:
        remembered = {name: tf.constant(weight.stored.numpy()) for name, weight in weights.items()}
        constant_rates = {name: tf.constant(rate) for name, rate in rates.items()}
        constant_decays = {name: tf.constant(decay) for name, decay in decays.items()}

        def step() -> None:
            for name, weight in weights.items():
                pull = constant_decays[name] * (remembered[name] - weight.stored)
                weight.stored.assign_add(pull - constant_rates[name] * weight.gradient)

        self.apply = graph_function(step)
