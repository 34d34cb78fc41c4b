"""Reading ahead: in order, in time, no further than asked, and errors where their item is."""

from __future__ import annotations

import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvd_lm.data.read_ahead import read_ahead


@given(count=st.integers(0, 20), depth=st.integers(1, 5))
def test_items_come_in_order(count: int, depth: int) -> None:
    assert list(read_ahead(lambda index: index * index, range(count), depth)) == [i * i for i in range(count)]


def test_the_next_items_are_made_while_one_is_used() -> None:
    made: list[int] = []
    arrived = threading.Semaphore(0)

    def make(index: int) -> int:
        made.append(index)
        arrived.release()
        return index

    items = read_ahead(make, range(100), depth=2)
    assert next(items) == 0
    for _ in range(3):
        assert arrived.acquire(timeout=10)
    time.sleep(0.05)
    assert made == [0, 1, 2], "two ahead, and no more"
    assert next(items) == 1
    items.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read-ahead")]


def test_an_error_comes_with_its_item() -> None:
    def make(index: int) -> int:
        if index == 2:
            raise OSError("the disk is gone")
        return index

    items = read_ahead(make, range(5))
    assert [next(items), next(items)] == [0, 1]
    with pytest.raises(OSError, match="the disk is gone"):
        next(items)
