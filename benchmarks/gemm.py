"""``python -m benchmarks.gemm FRAMEWORK THREADS H B N V``: rate of matrix products in GFLOPS, as JSON.

square: the machine's own. recurrent, input, output: the shapes of the model.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

_SECONDS = 1.5
_SQUARE = 2048


def torch_product(m: int, k: int, n: int, threads: int) -> Callable[[], object]:
    import torch

    torch.set_num_threads(threads)
    left, right = torch.rand(m, k), torch.rand(k, n)
    return lambda: left @ right


def tensorflow_product(m: int, k: int, n: int, threads: int) -> Callable[[], object]:
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    left, right = tf.random.uniform((m, k)), tf.random.uniform((k, n))
    return lambda: tf.matmul(left, right)


def best_seconds(action: Callable[[], object]) -> float:
    """Of as many calls as `_SECONDS` allow; what disturbs only makes slower."""
    action()
    best, ends = float("inf"), time.perf_counter() + _SECONDS
    while (began := time.perf_counter()) < ends:
        action()
        best = min(best, time.perf_counter() - began)
    return best


def main() -> None:
    product = {"torch": torch_product, "tensorflow": tensorflow_product}[sys.argv[1]]
    threads, hidden, batch, tokens, vocabulary = map(int, sys.argv[2:])
    shapes = {
        "square": (_SQUARE, _SQUARE, _SQUARE),
        "recurrent": (batch, hidden, 4 * hidden),
        "input": (tokens, hidden, 4 * hidden),
        "output": (tokens, hidden, vocabulary),
    }
    rates = {name: 2e-9 * m * k * n / best_seconds(product(m, k, n, threads)) for name, (m, k, n) in shapes.items()}
    print(json.dumps(rates))


if __name__ == "__main__":
    main()
