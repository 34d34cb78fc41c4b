"""tf.distribute.MultiWorkerMirroredStrategy with a training loop of its own: accumulate on each worker, reduce once a window."""

from __future__ import annotations

import json
import os
from typing import Any

import tensorflow as tf

from benchmarks.peers.keras_model import LanguageModel, State, adam, loss_of, set_threads, zero_state
from benchmarks.peers.work import WORK, Clock, batches


def main() -> None:
    set_threads()
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    rank, size = json.loads(os.environ["TF_CONFIG"])["task"]["index"], strategy.num_replicas_in_sync
    with strategy.scope():
        model, optimizer = LanguageModel().load(), adam()
        optimizer.build(model.trainable_variables)
        own = {"synchronization": tf.VariableSynchronization.ON_READ, "aggregation": tf.VariableAggregation.SUM}
        accumulated = [tf.Variable(tf.zeros(v.shape), trainable=False, **own) for v in model.trainable_variables]

    def accumulate_on_worker(inputs: Any, targets: Any, state: State) -> tuple[Any, State]:
        with tf.GradientTape() as tape:
            loss, state = loss_of(model, inputs, targets, state)
            scaled = loss / WORK.accumulation / size
        for total, gradient in zip(accumulated, tape.gradient(scaled, model.trainable_variables), strict=True):
            total.assign_add(tf.convert_to_tensor(gradient))
        return loss, state

    def apply_on_worker() -> None:
        # Keras' optimizer sums over the workers.
        optimizer.apply([total.read_value() for total in accumulated], model.trainable_variables)
        for total in accumulated:
            total.assign(tf.zeros_like(total))

    @tf.function
    def accumulate(inputs: Any, targets: Any, state: State) -> tuple[Any, State]:
        return strategy.run(accumulate_on_worker, args=(inputs, targets, state))  # type: ignore[no-any-return]

    @tf.function
    def apply() -> None:
        strategy.run(apply_on_worker)

    data, state, clock = batches(rank, size), zero_state(), Clock(rank)
    for _ in clock.windows():
        total = 0.0
        for _ in range(WORK.accumulation):
            inputs, targets = next(data)
            loss, state = accumulate(inputs, targets, state)
            total += float(loss) / WORK.accumulation
        apply()
        clock.end_window(total)


if __name__ == "__main__":
    main()
