"""The command `log verify`."""

import typer

from worker.cli.errors import Status
from worker.cli.output import AsJson, complain, print_json, say
from worker.cli.session import opened

app = typer.Typer(help="Check the log of verifications.", add_completion=False, no_args_is_help=True)


@app.callback()
def _log() -> None:
    """Check the log of verifications, in which every verdict on a copy is recorded."""


@app.command()
def verify(as_json: AsJson = False) -> None:
    """Check that no row of the log was changed or removed since it was written.

    Each row holds the hash of the row before it. The exit status is 1 if the chain is broken.

    Example:

        zot-artifacts log verify
    """
    with opened(existing=True) as session:
        broken = session.catalogue.verifications.first_broken()
    if as_json:
        print_json({"good": broken is None, "first_broken": broken})
    elif broken is None:
        say("the chain of the verification log is whole")
    else:
        complain(f"the verification log was changed at row {broken}: compare it with a backup")
    raise typer.Exit(Status.GOOD if broken is None else Status.BAD)
