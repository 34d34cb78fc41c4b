"""TensorFlow with Horovod's DistributedGradientTape, as its documentation shows: the tape reduces at every micro-batch.

``backward_passes_per_step`` is an option of Horovod's DistributedOptimizer only, and that one does not reduce under Keras 3.
"""

from __future__ import annotations

from typing import Any

import horovod.tensorflow as hvd
import tensorflow as tf

from benchmarks.peers.keras_model import LanguageModel, State, adam, loss_of, set_threads, zero_state
from benchmarks.peers.work import WORK, Clock, batches


def main() -> None:
    hvd.init()
    set_threads()
    model, optimizer = LanguageModel().load(), adam()
    optimizer.build(model.trainable_variables)
    # Horovod knows tf.Variable only, not Keras 3's.
    variables = [variable.value for variable in model.trainable_variables]
    accumulated = [tf.Variable(tf.zeros_like(variable), trainable=False) for variable in variables]

    @tf.function
    def accumulate(inputs: Any, targets: Any, state: State) -> tuple[Any, State]:
        with tf.GradientTape() as tape:
            loss, state = loss_of(model, inputs, targets, state)
            scaled = loss / WORK.accumulation
        tape = hvd.DistributedGradientTape(tape)
        for total, gradient in zip(accumulated, tape.gradient(scaled, variables), strict=True):
            total.assign_add(tf.convert_to_tensor(gradient))
        return loss, state

    @tf.function
    def apply() -> None:
        optimizer.apply(accumulated, model.trainable_variables)
        for total in accumulated:
            total.assign(tf.zeros_like(total))

    hvd.broadcast_variables([variable.value for variable in model.variables], root_rank=0)
    data, state, clock = batches(hvd.rank(), hvd.size()), zero_state(), Clock(hvd.rank())
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
