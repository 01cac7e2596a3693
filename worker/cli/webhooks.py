"""The commands `webhooks`, `webhooks test` and `webhooks forget`."""

from dataclasses import asdict
from typing import Annotated, Any
from uuid import uuid4

import typer

from worker import clock
from worker.alarms import webhook
from worker.alarms.attempts import AlarmUndelivered
from worker.cli.arguments import Yes, confirm
from worker.cli.errors import Failure, UsageError, suggestion
from worker.cli.output import AsJson, print_json, print_table, say
from worker.cli.session import opened
from worker.counted import counted
from worker.exit_status import Status
from worker.settings import load_settings

app = typer.Typer(invoke_without_command=True, add_completion=False)


@app.callback()
def webhooks(context: typer.Context, *, as_json: AsJson = False) -> None:
    """List the webhooks that are told when jobs end, test one, or forget what waits for one.

    The exit status is 1 if a message could not be delivered.

    Examples:

        zot-artifacts webhooks
        zot-artifacts webhooks test ci
    """
    if context.invoked_subcommand is not None:
        return
    with opened() as session:
        settings, states = session.settings.webhooks, session.catalogue.job_webhooks.receivers()
    nothing = {"delivered_at": None, "pending": 0, "given_up": 0, "error": None}
    rows: list[dict[str, Any]] = [
        {
            "receiver": name,
            **nothing,
            **(asdict(states[name]) if name in states else {}),
            "configured": name in settings,
        }
        for name in sorted({*settings, *states})
    ]
    if as_json:
        print_json({"webhooks": rows})
    else:
        cells = [
            (row["receiver"] if row["configured"] else f"{row['receiver']} (not configured)", row["delivered_at"],
             row["pending"], row["given_up"], row["error"])
            for row in rows
        ]  # fmt: skip
        columns = ("receiver", "delivered last", "waiting", "given up", "last error")
        print_table(columns, cells, empty="no webhook is configured", flexible=("last error",))
    raise typer.Exit(Status.BAD if any(row["error"] for row in rows) else Status.GOOD)


@app.command("test")
def send_test(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The webhook, by its name in the settings.")],
    as_json: AsJson = False,
) -> None:
    """Send a test message to a webhook, from this machine.

    The exit status is 1 if it was not accepted.

    Example:

        zot-artifacts webhooks test ci
    """
    known, now = load_settings().webhooks, clock.now()
    if name not in known:
        raise UsageError(f"the settings have no webhook {name}{suggestion(name, known)}")
    payload = {"id": str(uuid4()), "type": "test", "timestamp": now.isoformat(), "data": {}}
    try:
        webhook.post(payload, known[name], at=now, setting=f"webhooks.{name}")
    except AlarmUndelivered as error:
        raise Failure(str(error), type_="Undelivered") from None
    if as_json:
        print_json({"webhook": name, "accepted": True})
    else:
        say(f"{name}: accepted")


@app.command()
def forget(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The webhook, as `webhooks` lists it.")],
    *,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Forget the messages that wait for a webhook or were given up, and resolve its finding.

    Use it when a webhook has been removed from the settings for good.
    The jobs stay in the ledger: `zot-artifacts jobs` shows how they ended.

    Example:

        zot-artifacts webhooks forget ci
    """
    with opened() as session:
        known = {*session.settings.webhooks, *session.catalogue.job_webhooks.receivers()}
        if name not in known:
            raise UsageError(f"neither the settings nor a job name a webhook {name}{suggestion(name, known)}")
        if left := session.catalogue.job_webhooks.count_undelivered(name):
            confirm(f"forget the ends of {counted(left, 'job')} that {name} does not have?", yes=yes)
        count = session.catalogue.job_webhooks.forget(name, now=clock.now())
    if as_json:
        print_json({"webhook": name, "forgotten": count})
    else:
        say(f"{name}: the ends of {counted(count, 'job')} were forgotten")
