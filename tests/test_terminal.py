"""Messages and progress bars on one screen: whatever the order, a message has a line to itself."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import sys
import warnings

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from tqdm import tqdm

from spectral import SpectralWarning, cli
from spectral.terminal.console import SpectralCommand
from spectral.terminal.output import separate_lines


class Paper(io.StringIO):
    """A stream that says whether it is a terminal."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


def seen_on_screen(printed: str) -> list[str]:
    """What a terminal shows: carriage returns, cursor up and erase-below are obeyed."""
    lines, row, column = [""], 0, 0
    for token in re.findall(r"\x1b\[[AJ]|.|\n|\r", printed):
        if token == "\r":
            column = 0
        elif token == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif token == "\x1b[A":
            row = max(row - 1, 0)
        elif token == "\x1b[J":
            lines = [*lines[:row], lines[row][:column]]
        else:
            line = lines[row].ljust(column)
            lines[row] = line[:column] + token + line[column + 1 :]
            column += 1
    return [line.rstrip() for line in lines]


def act(action: str, bars: list[tqdm], number: int) -> None:
    match action:
        case "open":
            bars.append(tqdm(total=9, desc=f"bar {number}", mininterval=0, leave=number % 2 == 0, ncols=60))
        case "advance" if bars:
            bars[-1].update()
        case "close" if bars:
            bars.pop().close()
        case "forget" if bars:
            FORGOTTEN.append(bars.pop())
        case "out":
            print(f"message {number}")
        case "error":
            click.echo(f"message {number}", err=True)


FORGOTTEN: list[tqdm] = []  # an interrupted loop's bar: never closed, and tqdm keeps its line free
ACTIONS = st.lists(
    st.sampled_from(["open", "advance", "close", "forget", "out", "error"]), min_size=1, max_size=25
)


def close_forgotten() -> None:
    while FORGOTTEN:
        FORGOTTEN.pop().close()


@given(actions=ACTIONS, terminal=st.booleans())
def test_every_message_has_a_line_of_its_own(actions, terminal):
    paper = Paper(terminal)
    bars: list[tqdm] = []
    with contextlib.redirect_stdout(paper), contextlib.redirect_stderr(paper), separate_lines():
        for number, action in enumerate(actions):
            act(action, bars, number)
        while bars:
            bars.pop().close()
    close_forgotten()
    expected = [f"message {n}" for n, action in enumerate(actions) if action in ("out", "error")]
    printed = paper.getvalue()
    lines = seen_on_screen(printed) if terminal else printed.splitlines()
    assert [line for line in lines if "message" in line] == expected


@given(text=st.text(st.characters(exclude_characters="\r\n\x1b"), min_size=1))
def test_without_bars_nothing_is_changed(text):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), separate_lines():
        sys.stdout.write(text)
        sys.stderr.writelines([text, "\n", text])
    assert (out.getvalue(), err.getvalue()) == (text, f"{text}\n{text}")


class Left(io.StringIO):
    """A stream whose reader leaves after so many lines."""

    def __init__(self, lines: int) -> None:
        super().__init__()
        self.lines = lines

    def write(self, text: str) -> int:
        if self.getvalue().count("\n") >= self.lines:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")
        return super().write(text)


@pytest.mark.parametrize("lines", [0, 1])
def test_a_command_whose_reader_has_left_writes_its_tables(lines, tmp_path):
    arguments = ["attribute", "bundled/resnet8@random", "--images", "synthetic", "--limit", "2"]
    with contextlib.redirect_stdout(Left(lines)) as out, contextlib.redirect_stderr(Left(lines)):
        cli.main([*arguments, "--out", str(tmp_path)], standalone_mode=False)
    assert out.getvalue().count("\n") == lines
    assert {path.name for path in tmp_path.iterdir()} >= {"attribute.csv", "equivariance.csv"}


def test_a_pipe_without_a_reader_doesnt_fail_at_the_end_either():
    source, target = os.pipe()
    os.close(source)
    with open(target, "w") as pipe:  # which writes at its end what it still has
        with contextlib.redirect_stdout(pipe), separate_lines():
            print("a line", flush=True)
            print("another")
        assert pipe.name == target


def test_streams_are_put_back():
    before = sys.stdout, sys.stderr
    with pytest.raises(ZeroDivisionError), separate_lines():
        1 / 0  # noqa: B018
    assert (sys.stdout, sys.stderr) == before


def test_a_command_prints_warnings_beside_bars_as_one_line_each():
    @click.command(cls=SpectralCommand)
    def work() -> None:
        FORGOTTEN.append(tqdm(total=3, file=io.StringIO()))
        for step in tqdm(range(3), mininterval=0):
            warnings.warn(f"step {step}:\nassumed", SpectralWarning, stacklevel=1)

    result = CliRunner().invoke(work)
    close_forgotten()
    warned = [line for line in result.stderr.splitlines() if "assumed" in line]
    assert warned == [f"Warning: step {step}: assumed" for step in range(3)]


def test_the_same_note_twice_is_printed_twice():
    @click.command(cls=SpectralCommand)
    def work() -> None:
        for _ in range(2):
            warnings.warn("assumed", SpectralWarning, stacklevel=1)

    assert CliRunner().invoke(work).stderr == "Warning: assumed\n" * 2
