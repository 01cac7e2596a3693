"""The command `report`."""

from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer

from worker.cli.arguments import STREAM, duration, output_file
from worker.cli.atomic_file import complete_file
from worker.cli.errors import UsageError
from worker.cli.output import AsJson, print_json, say
from worker.cli.session import opened
from worker.report.page import page_of
from worker.report.report import SINCE, report_of


def report(
    html: Annotated[
        Path | None,
        typer.Option(
            "--html",
            parser=output_file,
            metavar="FILE",
            help="Write one self-contained HTML page to this file; `-` is standard output.",
        ),
    ] = None,
    since: Annotated[
        timedelta | None,
        typer.Option(parser=duration, metavar="TIME", help="How far back findings are counted; 30d by default."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Report coverage, findings and what was done about them, as one HTML page or as JSON.

    The exit status is that of `status`: 1 if something is open.

    Examples:

        zot-artifacts report --html report.html

        zot-artifacts report --json --since 7d
    """
    if html is None and not as_json:
        raise UsageError("say --html FILE or --json")
    to_stdout = html == output_file(STREAM)
    if to_stdout and as_json:
        raise UsageError("--json and --html `-` would both write to standard output: leave one out")
    with opened() as session:
        document = report_of(session, timedelta(seconds=SINCE) if since is None else since, session.stores)
        if html is not None:
            with complete_file(html, session.settings.spool_dir) as file:
                file.write(page_of(document).encode())
    if as_json:
        print_json(document)
    elif not to_stdout:
        say(f"the report is in {html}")
    raise typer.Exit(document["status"])
