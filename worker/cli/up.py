"""The command `up`."""

import os
from typing import Annotated

import typer

from worker.cli.errors import Failure
from worker.cli.output import AsJson, note, out, print_json, say
from worker.embedded.append_only_file import DamagedBroker
from worker.embedded.processes import CannotStart
from worker.embedded.supervisor import FLOWER_USER, NotReady, Running, UpOptions, run
from worker.exit_status import Status
from worker.settings import load_settings
from worker.settings.private_data_directory import way_out_of_home


def up(
    *,
    concurrency: Annotated[
        int, typer.Option(metavar="N", min=1, max=256, help="Worker processes, each of which runs one job at a time.")
    ] = 2,
    no_flower: Annotated[bool, typer.Option("--no-flower", help="Do not start Flower.")] = False,
    no_beat: Annotated[
        bool, typer.Option("--no-beat", help="Do not start beat, which starts the periodic sweeps.")
    ] = False,
    gateway: Annotated[
        bool, typer.Option("--gateway", help="Also start the HTTP gateway, on loopback; `tokens add` makes its tokens.")
    ] = False,
    accept_broker: Annotated[
        bool,
        typer.Option(
            "--accept-broker",
            help="Use a broker that belongs to another catalogue: that one was replaced by the configured one.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run broker, workers, beat and Flower on this machine.

    Everything runs until Ctrl-C or SIGTERM.
    Jobs that have not ended by then stay queued for the next `up`.
    The queues, the catalogue, the stores and the logs are in the data directory (ZOT_HOME, default ./var).

    Examples:

        zot-artifacts up
        ZOT_HOME=/srv/zot zot-artifacts up --concurrency 4
    """
    settings = load_settings()
    stores = list(settings.stores)

    def ready(running: Running) -> None:
        if as_json:
            print_json(_document(running, stores))
        else:
            _print(running, stores)

    options = UpOptions(
        concurrency, beat=not no_beat, flower=not no_flower, gateway=gateway, accept_broker=accept_broker
    )
    try:
        run(settings, options, ready=ready, say=note)
    except (NotReady, CannotStart, DamagedBroker) as error:
        raise Failure(str(error), Status.BAD, type_=type(error).__name__) from error
    except OSError as error:
        way_out = way_out_of_home(settings.home, error)
        message = f"the data directory {settings.home} cannot be used: {error}; {way_out}"
        raise Failure(message, Status.USAGE, type_="SettingsError") from error


def _document(running: Running, stores: list[str]) -> dict[str, object]:
    flower = running.flower_url and {
        "url": running.flower_url,
        "user": FLOWER_USER,
        "password_file": str(running.flower_password_file),
    }
    return {
        "ready": True,
        "pid": os.getpid(),
        "home": str(running.home),
        "broker_file": running.broker_file and str(running.broker_file),
        "flower": flower,
        "gateway": running.gateway_url and {"url": running.gateway_url},
        "stores": stores,
        "logs": str(running.logs),
    }


def _print(running: Running, stores: list[str]) -> None:
    if running.broker_file:
        say(f"broker   its URL, with the password, is in {running.broker_file}")
    if running.flower_url:
        say(f"flower   {running.flower_url} user {FLOWER_USER}, password in {running.flower_password_file}")
    if running.gateway_url:
        say(f"gateway  {running.gateway_url} with a token of `zot-artifacts tokens add`")
    say(f"stores   {', '.join(stores)}")
    say(f"logs     {running.logs}")
    out().print("[green]ready[/]    Ctrl-C stops everything; jobs that have not ended stay queued")
