"""The commands `alarms` and `alarms test`."""

from dataclasses import asdict
from typing import Any

import typer

from worker import clock
from worker.alarms.attempts import AlarmUndelivered
from worker.alarms.delivery import deliver
from worker.alarms.message_text import test_digest
from worker.cli.errors import UsageError
from worker.cli.output import AsJson, complain, print_json, print_table, say
from worker.cli.session import opened
from worker.exit_status import Status
from worker.settings import load_settings

app = typer.Typer(invoke_without_command=True, add_completion=False)


@app.callback()
def alarms(context: typer.Context, *, as_json: AsJson = False) -> None:
    """List the channels of alarms, or send a test alarm.

    The exit status is 1 if an alarm could not be delivered.

    Examples:

        zot-artifacts alarms
        zot-artifacts alarms test
    """
    if context.invoked_subcommand is not None:
        return
    with opened() as session:
        settings, states = session.settings.alarms, session.catalogue.alarms.channels()
    rows: list[dict[str, Any]] = [
        asdict(states[name]) if name in states else {"channel": name, "delivered_at": None, "pending": 0, "error": None}
        for name in settings.channels
    ]
    if as_json:
        print_json({"channels": rows})
    else:
        cells = [(row["channel"], row["delivered_at"], row["pending"], row["error"]) for row in rows]
        columns = ("channel", "delivered last", "waiting", "last error")
        print_table(columns, cells, empty="no channel is configured", flexible=("last error",))
    late = any(row["pending"] and row["error"] for row in rows)
    raise typer.Exit(Status.BAD if late else Status.GOOD)


@app.command("test")
def send_test(as_json: AsJson = False) -> None:
    """Send a test alarm through each channel, from this machine.

    The exit status is 1 if a channel did not accept it.

    Example:

        zot-artifacts alarms test
    """
    settings, now = load_settings().alarms, clock.now()
    if not set(settings.channels) - {"log"}:
        raise UsageError("no webhook and no e-mail is configured: see `alarms` in docs/settings.md")
    errors: dict[str, str | None] = {}
    for channel in settings.channels:
        try:
            errors[channel] = deliver(test_digest(now), channel, settings, at=now)
        except AlarmUndelivered as error:
            errors[channel] = str(error)
    if as_json:
        print_json({"channels": [{"channel": name, "error": refused} for name, refused in errors.items()]})
    else:
        for name, refused in errors.items():
            if refused is None:
                say(f"{name}: accepted")
            else:
                complain(f"{name}: {refused}")
    raise typer.Exit(Status.BAD if any(errors.values()) else Status.GOOD)
