"""A thread takes items from the caller: in order, at most one waiting, and with its errors."""

from __future__ import annotations

import threading
import time

import pytest

from mednext_monai.background import Background


def test_items_arrive_in_order_and_the_result_is_returned():
    with Background(list) as background:
        for item in range(100):
            background.put(item)
        assert background.result() == list(range(100))


def test_at_most_one_item_waits():
    go, put = threading.Event(), []

    def work(items):
        return [(item, go.wait(20)) for item in items]

    with Background(work) as background:

        def feed():
            for item in range(4):
                background.put(item)
                put.append(item)

        feeder = threading.Thread(target=feed)
        feeder.start()
        deadline = time.monotonic() + 20
        while len(put) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.2)
        assert put == [0, 1]  # the first is worked on, the second waits
        go.set()
        feeder.join(20)
        assert background.result() == [(item, True) for item in range(4)]


def test_an_error_of_the_thread_is_raised_and_nothing_hangs():
    def work(items):
        next(items)
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"), Background(work) as background:
        for item in range(1000):
            background.put(item)
    with pytest.raises(OSError, match="the disk is full"), Background(work) as background:
        background.put(1)  # noticed at the end only


def test_what_was_put_is_finished_if_the_caller_fails():
    done = []

    def work(items):
        for item in items:
            time.sleep(0.1)
            done.append(item)

    with pytest.raises(KeyboardInterrupt), Background(work) as background:
        background.put(1)
        background.put(2)
        raise KeyboardInterrupt
    assert done == [1, 2]


def test_a_function_that_stops_early_does_not_block_the_caller():
    with Background(lambda items: next(items)) as background:
        for item in range(10):
            background.put(item)
        assert background.result() == 0
