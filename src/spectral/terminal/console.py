"""What every command does alike: errors in one sentence, warnings in one line."""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Literal, NoReturn, TextIO

import click

from spectral.errors import BrokenJobError, ForwardError, LostRankError, SpectralError, SpectralWarning
from spectral.files.atomic import require_apart
from spectral.processes.launch import Stopped, find_launch, joined
from spectral.terminal.output import separate_lines

DEBUG = "SPECTRAL_DEBUG"  # set to anything: errors come with their traceback
OTHER_INPUTS = (
    "; if it takes signals, volumes or several inputs, give some with {}: a .npy file, a .npz file of named "
    "inputs, or a function as my_data.py:load"
)
BAD_INPUT, DEFECT, INTERRUPTED = 2, 1, 130
# Under what a command's context has what it has warned of, and the processes that were started with this one.
_SHOWN, _RANKS = f"{__name__}.shown", f"{__name__}.ranks"


device_option = click.option("--device", default="cpu", show_default=True, help="cpu, cuda, …")
quiet_option = click.option("--quiet", is_flag=True, help="No progress bars.")
workers_option = click.option(
    "--workers", type=click.IntRange(min=0), metavar="N",
    help="Processes that decode images, as many as help by default; 0 decodes in the main process.",
)  # fmt: skip


def split_names(text: str, option: str) -> tuple[str, ...]:
    """Read ``a,b,c``, as an option names things.

    Raises:
        SpectralError: if it names none, which isn't what leaving the option out means.

    Example:
        >>> split_names("a, b", "--models")
        ('a', 'b')
    """
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise SpectralError(f"{option} names nothing, got {text!r}; name some, as a,b,c, or leave it out")
    return names


class _OneVoice(click.Command):
    """Where torchrun has started it several times, the first process speaks for all."""

    def main(self, *args: Any, **given: Any) -> Any:
        """Run the command as a program."""
        try:
            first = find_launch().first
        except SpectralError as error:
            click.echo(f"Error: {error}", err=True)
            sys.exit(BAD_INPUT)
        if first or os.environ.get(DEBUG):
            return super().main(*args, **given)
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            return super().main(*args, **given)


class SpectralCommand(_OneVoice):
    """A command that ends every failure in one sentence on stderr: exit code 2 for bad input.

    An interruption ends with code 130; what this package didn't foresee, with 1 and a hint at the traceback.

    Args:
        ranks: what processes do that torchrun started together: ``"first"`` does all and the others end,
            they ``"share"`` what `spectral.measure` measures, all doing the same, or each works ``"apart"``,
            as long as there is something to do. The first one speaks.
    """

    def __init__(self, *args: Any, ranks: Literal["first", "share", "apart"] = "first", **given: Any) -> None:
        super().__init__(*args, **given)
        self.ranks = ranks

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Refuse an option that is given twice and takes one value: click keeps the last without a word."""
        _, _, given = self.make_parser(ctx).parse_args(args=list(args))
        for option, times in Counter(given).items():
            collects = (
                not isinstance(option, click.Option) or option.multiple or option.is_flag or option.count
            )
            if times > 1 and not collects:
                why = (
                    f"{option.opts[-1]} is given {times} times and takes one value: give it once, "
                    "with commas between several names where its help shows A,B,…."
                )
                raise click.UsageError(why, ctx)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        _print_anything(sys.stdout)
        launch = find_launch()
        if self.ranks == "first" and launch.count > 1:
            if not launch.first:
                ctx.exit(0)
            click.echo(f"{ctx.info_name} runs in one process; the other {launch.count - 1} end.", err=True)
        with separate_lines(), warnings.catch_warnings(), ExitStack() as job:
            warnings.simplefilter("always", SpectralWarning)
            shown: list[tuple[type[Warning], str]] = ctx.meta.setdefault(_SHOWN, [])
            warnings.showwarning = partial(_show_warning, shown)
            ranks, interrupts = None, job.enter_context(_noting_interrupts())
            try:
                if launch.count > 1 and self.ranks != "first":
                    ranks = job.enter_context(joined(launch, apart=self.ranks == "apart"))
                    ctx.meta[_RANKS] = ranks
                found = super().invoke(ctx)
                await_others()  # the first one writes: where it can't, the others haven't gone without a word
                return found
            except KeyboardInterrupt as stop:
                what = "Stopped, as when another rank ends" if isinstance(stop, Stopped) else "Interrupted"
                _end_interrupted(ctx, what)
            except (click.ClickException, click.exceptions.Exit, click.Abort):
                if ranks is None or ranks.first:
                    raise  # click's own ways to end
                ctx.exit(0)  # all read the same arguments, and the first says what is wrong with them
            except Exception as error:
                if os.environ.get(DEBUG):
                    raise
                if interrupts:
                    _end_interrupted(ctx)
                sentence, code = explain_error(error)
                if isinstance(error, BrokenJobError) and error.rank is not None:
                    # The others wait for this one elsewhere, and notice when it has ended.
                    click.echo(f"Error: {sentence}", file=sys.__stderr__)
                    ctx.exit(code)
                if ranks is not None:
                    sentence = ranks.share_failure(error, sentence)
                # The first, which speaks for all, may not be there: they haven't met, or lost one.
                lost = isinstance(error, LostRankError) and not launch.first and not launch.watched
                apart = lost or (ranks is None and launch.count > 1)
                click.echo(f"Error: {sentence}", file=sys.__stderr__ if apart else None, err=True)
                if ranks is not None:
                    ranks.part()
                ctx.exit(code)


class FilePath(click.Path):
    """A path; an empty one isn't the current folder."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read it."""
        if not os.fspath(value).strip():
            self.fail("is empty; name a file or folder, '.' is the current folder", param, ctx)
        if "\0" in os.fspath(value):
            self.fail("has a zero byte in it; name a file or folder", param, ctx)
        return super().convert(value, param, ctx)


def hold_folder(folder: Path, drawn_of: str | Sequence[str] = ()) -> None:
    """Be the only writer of a folder until the running command ends.

    Args:
        folder: the command's.
        drawn_of: images, as they are named, of which it draws pictures there.

    Raises:
        SpectralError: if another process is writing there, or it can't be written to, or pictures would come
            among the images.
    """
    require_apart(folder, drawn_of)
    if find_launch().count > 1:
        from spectral.processes.ranks import find_ranks, hold

        click.get_current_context().with_resource(hold(folder, find_ranks()))
    else:
        from spectral.files.writers import claim

        click.get_current_context().with_resource(claim(folder))


def await_others() -> None:
    """Wait until all processes that torchrun started of the running command have come here.

    Raises:
        RanksError: if one of them failed.
    """
    ranks = click.get_current_context().meta.get(_RANKS)
    if ranks is not None:
        ranks.exchange(None)


class SpectralGroup(_OneVoice, click.Group):
    """A group whose commands are `SpectralCommand`."""

    command_class = SpectralCommand

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that is named; click would end an interruption of its reading as a failure."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            _end_interrupted(ctx)


@contextmanager
def _noting_interrupts() -> Iterator[list[int]]:
    """Note every Ctrl-C: torch drops one that comes while it imports numpy, and fails somewhere later."""
    seen: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield seen
        return

    def note(number: int, frame: FrameType | None) -> None:
        seen.append(number)
        before(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, before)


def _end_interrupted(ctx: click.Context, what: str = "Interrupted") -> NoReturn:
    sentence = f"\n{what}; what was written is kept, and the same command continues from there."
    click.echo(sentence, err=True)
    ctx.exit(INTERRUPTED)


def _print_anything(stream: Any) -> None:
    """Let names that are no UTF-8 be printed, rather than fail after the work."""
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None and getattr(stream, "errors", "") == "strict":
        reconfigure(errors="backslashreplace")


def _advise_inputs() -> str:
    """Say with which option the running command takes inputs of other kinds than images, if it has one."""
    context = click.get_current_context(silent=True)
    options = [name for option in context.command.params for name in option.opts] if context else []
    found = next((name for name in ("--images", "--calibrate") if name in options), None)
    return "" if found is None else OTHER_INPUTS.format(found)


def explain_error(error: BaseException) -> tuple[str, int]:
    """Say in one line what went wrong, and with which code to exit.

    Example:
        >>> explain_error(SpectralError("stride must be ≥ 1, got 0"))
        ('stride must be ≥ 1, got 0', 2)
        >>> explain_error(PermissionError(13, "Permission denied", "results"))
        ("can't read or write results (Permission denied)", 2)
    """
    if any(_is_out_of_memory(e) for e in _causes(error)):
        return "out of memory; try a smaller --batch-size", BAD_INPUT
    if isinstance(error, ForwardError):
        return f"{_one_line(error)}{_advise_inputs()}", BAD_INPUT
    if isinstance(error, SpectralError):
        return _one_line(error), BAD_INPUT
    if isinstance(error, BrokenJobError):
        return _one_line(error), DEFECT
    if isinstance(error, OSError):
        if error.filename is None:
            return _one_line(error), BAD_INPUT
        return f"can't read or write {error.filename} ({error.strerror})", BAD_INPUT
    return f"unexpected {type(error).__name__}: {_one_line(error)}; {DEBUG}=1 shows where", DEFECT


def list_warnings() -> list[tuple[type[Warning], str]]:
    """Return what the running command has warned of so far, and of which kind it was."""
    return list(click.get_current_context().meta.get(_SHOWN, ()))


def show_again(warned: str) -> None:
    """Warn of what an earlier command has warned of, in the same words."""
    click.echo(f"Warning: {warned}", err=True)


def _show_warning(
    shown: list[tuple[type[Warning], str]], message: Warning | str, category: type[Warning], filename: str,
    lineno: int, file: TextIO | None = None, line: str | None = None,
) -> None:  # fmt: skip
    shown.append((category, _one_line(message)))
    show_again(shown[-1][1])


def _one_line(message: object) -> str:
    return " ".join(str(message).split()) or type(message).__name__


def _is_out_of_memory(error: BaseException) -> bool:
    # By name, because torch isn't imported here; on the CPU it raises a plain RuntimeError.
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or "DefaultCPUAllocator" in str(error)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__
