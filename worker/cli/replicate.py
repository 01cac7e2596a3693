"""The command `replicate`."""

from typing import Annotated

import typer

from worker.cli.arguments import All, ArtifactsArgument, IdempotencyKey, InFlight, KeysFrom, Notify, NoWait, Timeout
from worker.cli.job_outcome import finish
from worker.cli.output import AsJson
from worker.cli.replicate_verify_delete import Selection, run_verb
from worker.cli.send_and_wait import WaitOptions
from worker.cli.session import opened
from zot_artifact_client.contract import REPLICATE

To = Annotated[
    list[str], typer.Option("--to", metavar="STORE", help="A store that should have a copy. Can be repeated.")
]


def replicate(
    artifact: ArtifactsArgument = "",
    *,
    to: To,
    all_below: All = False,
    keys_from: KeysFrom = None,
    in_flight: InFlight = None,
    idempotency_key: IdempotencyKey = None,
    notify: Notify = None,
    no_wait: NoWait = False,
    timeout: Timeout = None,
    as_json: AsJson = False,
) -> None:
    """Copy artifacts to more stores, or repair bad copies.

    The bytes come from a copy whose digest is right.
    A bad copy in a named store is repaired; its bytes go into quarantine.

    Examples:

        zot-artifacts replicate releases/app.tgz --to dr
        zot-artifacts replicate releases/2026/ --all --to dr --to cloud
        zot-artifacts replicate --keys-from list.txt --to cloud
    """
    waiting = WaitOptions(not no_wait, timeout, idempotency_key, tuple(notify or ()))
    with opened() as session:
        fields = {"to": session.store_names(to)}
        selection = Selection(artifact, all_below, keys_from, in_flight)
        outcome = run_verb(session, REPLICATE, selection, fields, waiting)
    finish(outcome, waited=waiting.wait, as_json=as_json)
