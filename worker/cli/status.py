"""The command `status`."""

import typer

from worker.catalogue import CatalogueUnavailable, NoCatalogue
from worker.cli.output import AsJson, print_json
from worker.cli.session import opened
from worker.cli.status_output import print_status
from worker.report.service_checks import told_since_when
from worker.report.status import document_of
from worker.settings import load_settings


def status(as_json: AsJson = False) -> None:
    """Show what needs attention: findings, repairs, dead letters, overdue reads.

    The exit status is 1 if something is open, 3 if that is unknown, and otherwise 0.
    These are open:

        findings that are not acknowledged, and dead letters
        stores whose circuit breaker is open, or whose probe failed
        stores that refuse all that a batch or a sweep asks of them
        sweeps on schedule whose last run failed
        queues without a worker, a beat that does not tick, and workers that cannot use the catalogue
        a disk of the data directory, or of a store in a directory, with less than 1 GiB free
        jobs of the last day that failed with AccessDenied, OutOfSpace or SameStore of a store, or a worker's full disk

    Jobs of the last day that failed with another error are counted, and are not open.
    A job that failed is not counted once a later job has done the same.
    A pause is not open either, because an operator began it.

    Examples:

        zot-artifacts status
        zot-artifacts status --json
    """
    settings = load_settings()
    try:
        with opened() as session:
            document = document_of(session)
    except (CatalogueUnavailable, NoCatalogue) as error:
        raise type(error)(told_since_when(settings, error)) from error
    if as_json:
        print_json(document)
    else:
        print_status(document, settings.sweep.repair.every)
    raise typer.Exit(document["status"])
