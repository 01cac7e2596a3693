"""The command `log verify`."""

import typer

from worker import clock
from worker.artifacts.verification_log_head import log_faults
from worker.catalogue import FindingKind
from worker.cli.errors import Status
from worker.cli.output import AsJson, complain, print_json, say
from worker.cli.session import opened

app = typer.Typer(help="Check that the verification log was not changed.", add_completion=False, no_args_is_help=True)


@app.callback()
def _log() -> None:
    """Check the log of verifications, in which every verdict on a copy is recorded."""


@app.command()
def verify(as_json: AsJson = False) -> None:
    """Check that no row of the log was changed or removed since it was written; all rows are read.

    Each row holds the hash of the row before it, and each store keeps the hash of the last row.
    A broken chain is a finding from then on, until `log verify` finds it whole.
    The exit status is 1 if the chain is broken, or if the log does not fit what a store keeps.

    Example:

        zot-artifacts log verify
    """
    with opened(existing=True) as session:
        broken = session.catalogue.verifications.first_broken()
        faults = log_faults([session.stores[name] for name in session.settings.stores], session.catalogue)
        evidence = None if broken is None else {"detail": f"the verification log was changed at row {broken}"}
        session.catalogue.findings.see_store(FindingKind.LOG_CHANGED, "", evidence, now=clock.now())
    if as_json:
        print_json({"good": not faults, "first_broken": broken, "faults": faults})
    elif not faults:
        say("the chain of the verification log is whole")
    for fault in () if as_json else faults:
        complain(f"{fault}: compare it with a backup")
    raise typer.Exit(Status.BAD if faults else Status.GOOD)
