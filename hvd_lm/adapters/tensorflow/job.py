"""A TensorFlow process within its job."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from horovod.common.exceptions import HorovodInternalError
from numpy.typing import NDArray

from hvd_lm.adapters.job import Job, device_of
from hvd_lm.adapters.tensorflow.graphs import graph_function
from hvd_lm.adapters.tensorflow.probe import TensorFlowProbe
from hvd_lm.adapters.tensorflow.quiet import native_stderr_closed
from hvd_lm.adapters.tensorflow.weight import Arriving
from hvd_lm.job.threads import default_threads, worth_waking
from hvd_lm.model.split import BROADCAST, Share, blocks

with native_stderr_closed():
    import horovod.tensorflow as hvd
    import tensorflow as tf


class TensorFlowJob(Job):
    """On the GPU of the local rank where there is one."""

    horovod = hvd
    probe_class = TensorFlowProbe
    communication_errors = (HorovodInternalError, tf.errors.UnknownError, tf.errors.AbortedError, tf.errors.FailedPreconditionError)

    def _default_threads(self, multiply_adds: int | None) -> int:
        threads = default_threads()
        return threads if multiply_adds is None else worth_waking(multiply_adds, threads)

    def _set_threads(self, threads: int) -> int:
        try:
            tf.config.threading.set_intra_op_parallelism_threads(threads)
            tf.config.threading.set_inter_op_parallelism_threads(1)
        except RuntimeError:  # fixed since TensorFlow ran its first operation in this process
            return int(tf.config.threading.get_intra_op_parallelism_threads())
        return threads

    def broadcast_rows(self, name: str, variable: tf.Variable, share: Share) -> None:
        """From the first rank that holds the same rows, `share`, to the others. Collective over those."""
        group = self.holders(share)
        if not group.communicates:
            return
        first, arriving, values = share.rows.start, Arriving(share), variable.read_value()
        for rows in blocks(share.rows, share.shape, BROADCAST):
            sent = values[rows.start - first : rows.stop - first]
            named = f"state.{name}.{rows.start}"
            received = hvd.broadcast(sent, group.ranks[0], name=named, process_set=group.process_set)
            arriving.add(rows.start, received.numpy())
        variable.assign(arriving.values)

    def _make_deterministic(self) -> None:
        tf.config.experimental.enable_op_determinism()

    def _choose_device(self, local_rank: int) -> None:
        if gpus := tf.config.list_physical_devices("GPU"):
            own = gpus[device_of(local_rank, len(gpus))]
            for gpu in gpus:
                tf.config.experimental.set_memory_growth(gpu, True)
            tf.config.set_visible_devices(own, "GPU")

    def _framework_summary(self) -> str:
        devices = ", ".join(device.device_type for device in tf.config.get_visible_devices())
        return f"TensorFlow {tf.__version__} on {devices}"

    def _allgather(self, rows: tf.Tensor, name: str, process_set: Any) -> tf.Tensor:
        return _named_allgather(rows, f"allgather.{name}", process_set)  # what Horovod makes of `name` in PyTorch

    def _to_tensor(self, values: NDArray[Any]) -> tf.Tensor:
        return tf.constant(values)

    def _to_numpy(self, tensor: tf.Tensor) -> NDArray[Any]:
        return np.asarray(tensor.numpy())


@partial(graph_function, reduce_retracing=True)
def _named_allgather(rows: tf.Tensor, name: str, process_set: Any) -> tf.Tensor:
    """`name` as it is: Horovod names what is outside of graphs in a way of TensorFlow's own."""
    with tf.device("CPU"):
        return hvd.allgather(rows, name=name, ignore_name_scope=True, process_set=process_set)
