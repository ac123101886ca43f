"""A thread that works on items while the caller makes the next one. Imports neither torch nor MONAI."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Generic, TypeVar

__all__ = ["Background"]

Item = TypeVar("Item")
Result = TypeVar("Result")
END = object()


class Background(Generic[Item, Result]):
    """
    Call a function with an iterator, in a thread, over items that are put here; at most one of them waits.

    As a context manager, it waits at the end for the function to return, also if the block raises. Then the function
    gets what has been put before, and its own error is dropped in favor of that of the block.

    Args:
        function: called once with the iterator. It may stop before the last item.
    """

    def __init__(self, function: Callable[[Iterator[Item]], Result]) -> None:
        self._function = function
        self._queue: queue.Queue[Any] = queue.Queue(maxsize=1)
        self._result: Result | None = None
        self._error: BaseException | None = None
        self._is_closed = False  # the caller has put the end
        self._is_read = False  # the thread has met it
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def put(self, item: Item) -> None:
        """Hand over an item, waiting while another one waits; raise the error of the function if it has failed."""
        self.check()
        self._queue.put(item)

    def check(self) -> None:
        """Raise the error of the function if it has failed."""
        if self._error is not None:
            raise self._error

    def result(self) -> Result:
        """Wait for the function, with the items that have been put, and return its result or raise its error."""
        self._close()
        self.check()
        return self._result  # type: ignore[return-value]  # set if there is no error

    def __enter__(self) -> Background[Item, Result]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()
        if error is None:
            self.check()

    def _close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._queue.put(END)
        self._thread.join()

    def _items(self) -> Iterator[Item]:
        while not self._is_read:
            item = self._queue.get()
            if item is END:
                self._is_read = True
                return
            yield item
            del item  # not held while waiting for the next one

    def _run(self) -> None:
        items = self._items()
        try:
            self._result = self._function(items)
        except BaseException as error:
            self._error = error
        finally:
            for _ in self._items():  # what the function has not asked for; `put` must not wait forever
                pass
