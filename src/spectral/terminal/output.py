"""One writer for what a command prints: a message never lands on the line of a progress bar.

Bars draw with carriage returns and cursor moves, messages (tables, warnings, log records) end in a newline,
and both come from many libraries. While a command runs, everything that goes to stdout and stderr passes
here, where it is known whether the cursor stands behind a bar. Where nobody reads it any more, as behind
``| head``, the command finishes its work all the same: what it writes to files would be lost with the text.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
from collections.abc import Iterator
from typing import Any, TextIO

_ERASE = "\r\x1b[J"  # this line and, below it, the lines of nested bars
_CURSOR_MOVES = re.compile(r"(\n|\x1b\[A)+")


@contextlib.contextmanager
def separate_lines() -> Iterator[None]:
    """Keep bars and messages on lines of their own, on stdout and stderr together.

    On a terminal a message takes the place of the bar, which is drawn again below it; in a file the bar
    stays and the message gets the next line.

    Example:
        >>> import io
        >>> with contextlib.redirect_stderr(io.StringIO()) as printed, separate_lines():
        ...     _ = sys.stderr.write("\\r 50%|█    |")
        ...     print("Warning: a file is broken", file=sys.stderr)
        >>> printed.getvalue()
        '\\r 50%|█    |\\nWarning: a file is broken\\n'
    """
    screen = _Screen()
    out, err = (_Stream(_Paper(stream), screen) for stream in (sys.stdout, sys.stderr))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        yield


class _Screen:
    """What both streams draw on: which of them, if any, has drawn a bar since the last message."""

    def __init__(self) -> None:
        self.lock = threading.RLock()  # bars are also drawn by tqdm's own thread
        self.bar: _Paper | None = None
        self.standing = False  # whether the cursor's own line holds it

    def clear(self) -> None:
        """Leave the lines of bars."""
        if self.bar is not None and self.bar.isatty():
            self.bar.write(_ERASE)
        elif self.bar is not None and self.standing:
            self.bar.write("\n")
        if self.bar is not None:
            self.bar.flush()
        self.bar, self.standing = None, False


class _Paper:
    """A text stream of which all that comes after its reader has gone is thrown away."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._unread = stream, False

    def write(self, text: str) -> int:
        with self._going_on():
            return len(text) if self._unread else self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._going_on():
            if not self._unread:
                self._stream.flush()

    @contextlib.contextmanager
    def _going_on(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            self._unread = True
            # What is buffered goes somewhere else, so that the interpreter doesn't fail on it at its end.
            with contextlib.suppress(OSError, ValueError), open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Stream:
    """A text stream that leaves the lines of bars before it writes a message."""

    def __init__(self, stream: _Paper, screen: _Screen) -> None:
        self._stream, self._screen = stream, screen

    def write(self, text: str) -> int:
        screen = self._screen
        with screen.lock:
            if text.startswith("\r") or _CURSOR_MOVES.fullmatch(text):
                screen.standing = bool(re.split(r"[\r\n]", text)[-1].strip())  # not if blanks wipe it
                screen.bar = screen.bar if text.strip("\n") == "" else self._stream
            elif text:
                screen.clear()
            return self._stream.write(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
