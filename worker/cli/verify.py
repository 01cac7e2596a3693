"""The command `verify`."""

from worker.cli.arguments import All, ArtifactsArgument, IdempotencyKey, InFlight, KeysFrom, NoWait, Stores, Timeout
from worker.cli.outcome import finish
from worker.cli.output import AsJson
from worker.cli.session import opened
from worker.cli.verbs import Selection, run_verb
from zot_artifact_client.contract import VERIFY


def verify(
    artifact: ArtifactsArgument = "",
    *,
    store: Stores = None,
    all_below: All = False,
    keys_from: KeysFrom = None,
    in_flight: InFlight = None,
    idempotency_key: IdempotencyKey = None,
    no_wait: NoWait = False,
    timeout: Timeout = None,
    as_json: AsJson = False,
) -> None:
    """Read every copy in full and compare its digest.

    The SHA-256 of all bytes is compared with the one recorded at the upload.
    The exit status is 1 if a copy is corrupt, missing or of another size, and 3 if a copy could not be read.

    Examples:

        zot-artifacts verify releases/app.tgz
        zot-artifacts verify releases --all --store dr
    """
    with opened(existing=True) as session:
        fields = {"stores": session.store_names(store)}
        selection = Selection(artifact, all_below, keys_from, in_flight)
        outcome = run_verb(session, VERIFY, selection, fields, key=idempotency_key, wait=not no_wait, timeout=timeout)
    finish(outcome, waited=not no_wait, as_json=as_json)
