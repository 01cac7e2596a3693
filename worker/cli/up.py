"""The command that runs everything on this machine: up."""

import os
from typing import Annotated

import typer

from worker.cli.errors import Failure, Status
from worker.cli.output import AsJson, note, out, print_json
from worker.embedded.supervisor import FLOWER_USER, NotReady, Running, Wish, run
from worker.settings import load_settings


def up(
    concurrency: Annotated[int, typer.Option(min=1, max=256, help="Jobs that run at the same time.")] = 2,
    no_flower: Annotated[bool, typer.Option("--no-flower", help="Without Flower.")] = False,
    no_beat: Annotated[bool, typer.Option("--no-beat", help="Without the periodic sweeps.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run broker, worker, beat and Flower on this machine until Ctrl-C."""
    settings = load_settings()
    stores = list(settings.stores)

    def ready(running: Running) -> None:
        if as_json:
            print_json(_document(running, stores))
        else:
            _tell(running, stores)

    wish = Wish(concurrency, beat=not no_beat, flower=not no_flower)
    try:
        run(settings, wish, ready=ready, say=note)
    except NotReady as error:
        raise Failure(str(error), Status.BAD, type_="NotReady") from error


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
        "stores": stores,
        "logs": str(running.logs),
    }


def _tell(running: Running, stores: list[str]) -> None:
    console = out()
    if running.broker_file:
        console.print(f"broker   its URL, with its password, is in {running.broker_file}", markup=False)
    if running.flower_url:
        where = f"flower   {running.flower_url} user {FLOWER_USER}, password "
        secret = running.flower_password and f"{running.flower_password} (not shown again; kept in "
        kept = f"{running.flower_password_file}"
        console.print(f"{where}{secret}{kept})" if secret else f"{where}in {kept}", markup=False)
    console.print(f"stores   {', '.join(stores)}", markup=False)
    console.print(f"logs     {running.logs}", markup=False)
    console.print("[green]ready[/]    Ctrl-C ends it; what is not done then stays queued")
