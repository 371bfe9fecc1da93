"""What is worked out in a thread of its own while Python goes on with something else."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Ahead(Generic[T]):
    """The value of a function that is called at once, in a thread that has ended when the value is there.

    It helps where the function leaves Python's lock alone, as hashing does, and nothing that it reads is
    written meanwhile.

    Args:
        function: called without arguments. What it raises is raised when its value is asked for.

    Example:
        >>> ahead = Ahead(lambda: 2 + 3)
        >>> ahead.value
        5
    """

    def __init__(self, function: Callable[[], T]) -> None:
        self._function = function
        self._result: list[T] = []
        self._error: BaseException | None = None
        # Python waits for it at its end: a daemon that is in torch's code then aborts the whole process.
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    @property
    def value(self) -> T:
        """What the function has returned; waits for it."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._result[0]

    def _run(self) -> None:
        try:
            self._result.append(self._function())
        except BaseException as error:  # for whoever asks
            self._error = error
