"""The command line: `zot-artifacts`."""

import os
import sys
from collections.abc import Sequence

import typer

from worker.cli import adopt, demo, doctor, get, inspect, jobs, pause, transfers, up
from worker.cli.errors import Failure, Status, failure_of
from worker.cli.output import complain, print_json

app = typer.Typer(
    name="zot-artifacts",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Put artifacts into stores, keep their copies right, and prove it. "
    "ZOT_HOME names the data directory (./var by default), ZOT_CONFIG the configuration file.",
    epilog="Exit status: 0 done and good; 1 done and bad; 2 usage or configuration; 3 could not be told.",
)
for command in (
    up.up,
    demo.demo,
    transfers.upload,
    transfers.replicate,
    transfers.verify,
    transfers.delete,
    adopt.adopt,
    get.get,
    inspect.ls,
    inspect.show,
    inspect.stores,
    pause.pause,
    pause.resume,
    pause.pauses,
    doctor.doctor,
):
    app.command()(command)
app.add_typer(jobs.app, name="jobs")


def main() -> None:
    """Run the command that was asked for, and end with its exit status."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit status; every foreseen error is one line."""
    try:
        return app(arguments, prog_name="zot-artifacts", standalone_mode=False) or Status.GOOD
    except (KeyboardInterrupt, typer.Abort):
        return Status.INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains while it ends
        return Status.BAD
    except Exception as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            return Status.USAGE  # typer has printed the help already
        failure = failure_of(error)
        if failure is None:
            raise
        _tell(failure, as_json="--json" in arguments)
        return failure.status


def _tell(failure: Failure, *, as_json: bool) -> None:
    if as_json:
        print_json({"error": {"type": failure.type, "message": failure.message}})
    complain(failure.message)
