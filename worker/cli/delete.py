"""The command `delete`."""

from typing import Annotated

import typer

from worker.catalogue.nearest_key import nearest
from worker.cli.arguments import (
    All,
    ArtifactPath,
    ArtifactsArgument,
    IdempotencyKey,
    InFlight,
    KeysFrom,
    Notify,
    NoWait,
    Stores,
    Timeout,
)
from worker.cli.errors import Failure, UsageError
from worker.cli.job_outcome import finish
from worker.cli.output import AsJson, note
from worker.cli.replicate_verify_delete import Selection, run_verb
from worker.cli.send_and_wait import WaitOptions
from worker.cli.session import Session, opened
from worker.cli.user import user_name
from worker.exit_status import Status
from worker.storage.durations_and_sizes import duration_text
from zot_artifact_client.contract import DELETE


def delete(
    artifact: ArtifactsArgument = "",
    *,
    store: Stores = None,
    allow_last: Annotated[
        bool, typer.Option("--allow-last", help="Delete even if no good copy remains in another store.")
    ] = False,
    everything: Annotated[
        bool, typer.Option("--everything", help="With --all BUCKET: confirm that the whole bucket is to be deleted.")
    ] = False,
    now: Annotated[
        bool, typer.Option("--now", help="Remove the bytes at once: the delete cannot be undone. For one artifact.")
    ] = False,
    reason: Annotated[str | None, typer.Option("--reason", metavar="TEXT", help="Why; it is recorded.")] = None,
    by: Annotated[
        str | None, typer.Option("--by", metavar="NAME", help="Who deletes; your user name by default.")
    ] = None,
    all_below: All = False,
    keys_from: KeysFrom = None,
    in_flight: InFlight = None,
    idempotency_key: IdempotencyKey = None,
    notify: Notify = None,
    no_wait: NoWait = False,
    timeout: Timeout = None,
    as_json: AsJson = False,
) -> None:
    """Delete artifacts, or their copies in single stores.

    Without --store the artifact is deleted from all stores.
    Its bytes stay for `delete.grace`, 7 days by default; until then `zot-artifacts undelete` undoes the delete.
    With --now, and in the stores that --store names, the bytes are removed at once.
    A delete of more artifacts than `delete.approval_above` waits for `zot-artifacts deletes approve`.
    All deletes of one requester within `delete.approval_window` count together.
    `zot-artifacts ls PREFIX` lists the artifacts that --all would delete.

    Examples:

        zot-artifacts delete releases/app.tgz
        zot-artifacts delete releases/app.tgz --now --reason "leaked a password"
        zot-artifacts delete releases/app.tgz --store dr
        zot-artifacts delete releases/2019/ --all
    """
    waiting = WaitOptions(not no_wait, timeout, idempotency_key, tuple(notify or ()))
    with opened() as session:
        fields: dict[str, object] = {
            "stores": session.store_names(store),
            "allow_last": allow_last or None,
        }
        selection = Selection(artifact, all_below, keys_from, in_flight)
        many = selection.many
        if everything or (all_below and not artifact.partition("/")[2]):
            fields["everything"] = _everything(artifact, all_below=all_below, sure=everything)
        if many and now:
            raise UsageError("--now goes with one artifact")
        rules = session.settings.delete
        if now or reason:
            fields |= {"now": now or None, "reason": reason}
        if rules.approval_above is not None or rules.grace:
            fields["by"] = by or user_name()
        elif by:
            fields["by"] = by
        if not many:
            _require_known(session, ArtifactPath.parse(artifact, many="--all"))
        outcome = run_verb(session, DELETE, selection, fields, waiting)
        grace = session.settings.delete.grace
    if many and not store and grace:
        undo = f"`zot-artifacts undelete --job {outcome.job}`"
        note(f"for {duration_text(grace)} after the delete {undo} brings them back")
    finish(outcome, waited=waiting.wait, as_json=as_json)


def _require_known(session: Session, at: ArtifactPath) -> None:
    """Raise Failure for a key that the catalogue never had: it is mistyped. A deleted artifact is no error."""
    if session.catalogue.artifacts.version(at.bucket, at.key, 1) is not None:
        return
    hint = nearest(session.catalogue.artifacts, at.bucket, at.key)
    raise Failure(
        f"{at} is not in the catalogue and never was: nothing was deleted{hint}", Status.BAD, type_="NotFound"
    )


def _everything(path: str, *, all_below: bool, sure: bool) -> bool:
    """Return True if the command line confirms that a whole bucket is meant."""
    if not sure:
        raise UsageError(f"this would delete all of {path.rstrip('/')!r}: add --everything, or a prefix")
    if not all_below or path.partition("/")[2]:
        raise UsageError("--everything goes with --all BUCKET, without a prefix")
    return True
