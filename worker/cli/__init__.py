"""The command line: `zot-artifacts`."""

import contextlib
import gc
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Annotated

import typer

from worker.bounded_exit import end_within
from worker.cli.commands import LazyGroup
from worker.cli.errors import Failure, failure_of
from worker.cli.output import StandardOutput, complain, print_json
from worker.exit_status import Status

app = typer.Typer(
    name="zot-artifacts",
    cls=LazyGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Keep artifacts in object stores: upload, replicate, verify, repair and delete them.\n\n"
    "The environment variable ZOT_HOME names the data directory (default: ./var).\n"
    "ZOT_CONFIG names the configuration file (default: none).\n"
    "An artifact is named BUCKET/KEY, such as releases/app.tgz.\n"
    "`zot-artifacts COMMAND --help` shows the options and examples of a command.\n\n"
    "Examples:\n\n"
    "    zot-artifacts up\n"
    "    zot-artifacts upload app.tgz releases/app.tgz\n"
    "    zot-artifacts show releases/app.tgz\n"
    "    zot-artifacts status",
    epilog="Exit status: 0 success; 1 the result is bad (failed, corrupt, missing, rejected); "
    "2 usage or configuration error; 3 unknown (unreadable, no broker, timeout).",
)

_ENDS = (signal.SIGTERM, signal.SIGHUP)
"""The signals that would end the process at once, such as those of `timeout` and of a terminal that is closed."""
_received: list[int] = []


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"zot-artifacts {version('zot-artifact-worker')}")
        raise typer.Exit


@app.callback()
def _root(
    _: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Define the options of `zot-artifacts` itself, such as --version."""


def main() -> None:
    """Run the command of this command line, and exit with its status."""
    _occupy_closed_streams()
    StandardOutput.use()
    with contextlib.suppress(AttributeError):  # a caller may have replaced the stream
        sys.stderr.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    for number in _ENDS:
        if signal.getsignal(number) is signal.SIG_DFL:  # as nohup leaves it, it is ignored
            signal.signal(number, _end)
    status = _flushed(run(sys.argv[1:]))
    if _received:  # what called this command learns how it ended
        signal.signal(_received[0], signal.SIG_DFL)
        os.kill(os.getpid(), _received[0])
    end_within(status=status)
    gc.freeze()  # what was imported: Python walks it several times at its end, a quarter of the time of `ls`
    sys.exit(status)


def _end(number: int, _frame: FrameType | None) -> None:
    """End the command as Ctrl-C does, which removes what was staged or written in part.

    Threads that wait for a silent store do not keep it for longer than a few seconds.
    """
    _received.append(number)
    with contextlib.suppress(RuntimeError):  # the machine has no room for a thread
        end_within(status=128 + number)
    raise KeyboardInterrupt


def _flushed(status: int) -> int:
    """Write what is left of the output, and return the exit status; Python prints several lines if that fails later."""
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the rest, when Python exits
        if status == Status.GOOD and not isinstance(error, BrokenPipeError):
            complain(f"standard output: {error.strerror}")
        return status or Status.BAD
    return status


def _occupy_closed_streams() -> None:
    """Open what the caller has closed, so that no file takes its number, and every use of it is an error of one line.

    What is read is opened for writing and the reverse, except that messages are dropped.
    """
    for number, mode in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, mode)  # gets the lowest number that is free, which is this one
    sys.stdin = sys.stdin or open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - as Python opens them
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit status; every expected error is printed as one line."""
    try:
        return app(arguments, prog_name="zot-artifacts", standalone_mode=False) or Status.GOOD
    except (KeyboardInterrupt, typer.Abort):
        return Status.INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # otherwise Python prints an error when it exits
        return Status.BAD
    except Exception as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            return Status.USAGE  # typer has printed the help already
        failure = failure_of(error)
        if failure is None:
            raise
        _report(failure, as_json="--json" in arguments)
        return failure.status


def _report(failure: Failure, *, as_json: bool) -> None:
    if as_json:
        with contextlib.suppress(OSError):  # what failed may be the write to this very stream
            print_json({"error": {"type": failure.type, "message": failure.message}})
    complain(failure.message)
