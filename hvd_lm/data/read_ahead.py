"""Reading beside training: the next items are made in a thread while the loop computes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_Item = TypeVar("_Item")


def read_ahead(make: Callable[[int], _Item], indices: Iterable[int], depth: int = 2) -> Generator[_Item]:
    """``make(index)`` for each of `indices`, in order, up to `depth` of them made before they are asked for.

    What `make` raises is raised where its item is asked for.
    """
    pending: deque[Future[_Item]] = deque()
    thread = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")
    try:
        for index in indices:
            pending.append(thread.submit(make, index))
            if len(pending) > depth:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        thread.shutdown(cancel_futures=True)
