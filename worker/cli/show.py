"""The command `show`."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any

import typer

from worker.artifacts.verification_log.archive import archive_key
from worker.artifacts.verification_log.kept_head import signed_head
from worker.artifacts.verification_log.signature import LogKeys
from worker.catalogue import BAD, Copy, CopyState, EvidenceCheck
from worker.catalogue.nearest_key import nearest
from worker.cli.arguments import ArtifactArgument, ArtifactPath
from worker.cli.jobs_retry import adds_copies
from worker.cli.output import AsJson, flat, print_json, print_table, say
from worker.cli.session import Session, opened
from worker.counted import counted
from worker.readable import size
from worker.storage import Verdict
from worker.storage.cloud.object_tags import decode_tags
from worker.storage.errors import NotFound
from worker.storage.keys import BACKUP_BUCKET

_UNTOLD = {"hash", "row_fits_its_hash", "found_size", "finding"}


def show(
    artifact: ArtifactArgument,
    *,
    proof: Annotated[
        bool, typer.Option("--proof", help="Show its history: every read, repair, finding and delete, with the job.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show one artifact and the state of each copy.

    Each copy has its state, its last verification and its last attempt.
    Metadata, headers and tags are those that the catalogue keeps with the bytes.
    With --proof its history is listed, also of an artifact that was deleted: `read` means that all bytes were read.
    A hold that has ended leaves no record.
    Each read is a row of the verification log; `zot-artifacts log verify` checks the whole log.

    Examples:

        zot-artifacts show releases/app.tgz

        zot-artifacts show releases/app.tgz --proof
    """
    at = ArtifactPath.parse(artifact)
    with opened() as session:
        if proof:
            _prove(session, at, as_json=as_json)
            return
        found = session.catalogue.artifact(at.bucket, at.key)
        known = session.catalogue.artifacts.copies(found).values()
        copies = [copy for copy in known if copy.state.present]
        begun = [copy.store for copy in known if copy.state is CopyState.WRITING]
        configured = set(session.settings.stores)
        checks = session.catalogue.evidence_checks.of([copy.id for copy in copies])
        held = session.catalogue.holds.get(at.bucket, at.key)
        companions = [each.key for each in session.catalogue.companions.of(at.bucket, at.key)]
        owner = session.catalogue.companions.owner(at.bucket, at.key)
    headers = {name: value for name, value in sorted(found.properties.items()) if name != "tags"}
    tags = decode_tags(found.properties.get("tags"))
    if as_json:
        hold = asdict(held) if held else None
        print_json({
            **found.facts, "metadata": dict(found.metadata), "properties": headers, "tags": tags,
            "hold": hold, "companions": companions, "companion_of": owner,
            "copies": [_copy(copy, checks.get(copy.id)) for copy in copies],
        })  # fmt: skip
        return
    say(f"{found.path} version {found.version} {size(found.digest.size)}")
    say(f"sha256 {found.digest.sha256}")
    if held is not None:
        say(f"held by {held.by} since {held.held_at:%Y-%m-%d}: {held.reason}")
    for key in companions:
        say(f"companion {at.bucket}/{key}")
    if owner is not None:
        say(f"companion of {at.bucket}/{owner}")
    for name, value in found.metadata.items():
        say(f"metadata {name}={value}")
    for name, value in headers.items():
        say(f"{name} {value}")
    for name, value in tags.items():
        say(f"tag {name}={value}")
    rows = [
        (
            copy.store,
            _state(copy, configured=copy.store in configured),
            copy.last_verified_at,
            copy.last_attempt_at,
            _evidence(copy, check) if (check := checks.get(copy.id)) else None,
        )
        for copy in copies
    ]
    columns = ("store", "state", "last verified", "last attempt", "evidence")
    print_table(columns, rows, empty="no copies", flexible=("state",))
    for store in begun:
        way_out = adds_copies(found, [store])
        say(f"{store}: its copy is not written yet: the upload runs, or it failed; then {way_out}")


def _evidence(copy: Copy, check: EvidenceCheck) -> str:
    older = ", before the bad verdict" if _is_superseded(copy, check) else ""
    return f"{check.outcome} {check.checked_at:%Y-%m-%d}{older}"


def _is_superseded(copy: Copy, check: EvidenceCheck) -> bool:
    """Return whether a check without a read is older than the verdict that found the copy bad."""
    at, verdict_at = check.checked_at, copy.last_attempt_at
    return copy.state in BAD and at is not None and verdict_at is not None and at <= verdict_at


def _state(copy: Copy, *, configured: bool) -> str:
    archived = ", archived: not readable now" if copy.last_verdict == Verdict.ARCHIVED else ""
    return f"{copy.state.value}{archived}" if configured else f"{copy.state.value}{archived}, store not configured"


def _prove(session: Session, at: ArtifactPath, *, as_json: bool) -> None:
    events = session.catalogue.history.of(at.bucket, at.key)
    if not any(event.what == "recorded" for event in events):
        hint = nearest(session.catalogue.artifacts, at.bucket, at.key)
        raise NotFound(f"{at.bucket}/{at.key} was never recorded{hint}")
    head = signed_head(session.catalogue, LogKeys.of(session.settings.verification_log))
    recorded_at = min(event.at for event in events if event.what == "recorded")
    archives = [each for each in session.catalogue.log_archives.all() if each.ended_at >= recorded_at]
    keys = [f"{BACKUP_BUCKET}/{archive_key(session.catalogue, each)}" for each in archives]
    current = session.catalogue.artifacts.current(at.bucket, at.key)
    copies = session.catalogue.artifacts.copies(current).values() if current else ()
    if as_json:
        shown = [
            {"store": each.store, "state": each.state.value, "last_verified_at": each.last_verified_at,
             "written_with": dict(each.evidence)}
            for each in copies
        ]  # fmt: skip
        print_json({
            "bucket": at.bucket, "key": at.key, "current": current.facts if current else None, "copies": shown,
            "history": [asdict(event) for event in events], "log_head": head,
            "archives": [{**asdict(each), "object": key} for each, key in zip(archives, keys, strict=True)],
        })  # fmt: skip
        return
    rows = [
        (event.at, event.what, event.version, event.store, _details(event.details), event.job)
        for event in events
    ]  # fmt: skip
    columns = ("when", "what", "version", "store", "details", "job")
    print_table(columns, rows, empty="", flexible=("details", "job"))
    for each, key in zip(archives, keys, strict=True):
        say(f"reads of {each.month}, rows {each.first} to {each.last} of the log, are archived in {key}")
    if head:
        say(f"the verification log has {counted(head['count'], 'row')}, the last with hash {head['hash']}")


def _details(details: Mapping[str, Any]) -> str:
    """Return the details that tell something: digests are shortened, a row of the log that fits is only named."""
    told = {name: value for name, value in details.items() if value is not None and name not in _UNTOLD}
    if details.get("row_fits_its_hash") is False:
        told["row"] = f"{told['row']}, CHANGED SINCE IT WAS WRITTEN"
    for name in ("sha256", "expected_sha256", "found_sha256"):
        if name in told:
            told[name] = f"{told[name][:12]}…"
    return flat(told)


def _copy(copy: Copy, check: EvidenceCheck | None) -> dict[str, Any]:
    return {
        "store": copy.store,
        "state": copy.state.value,
        "last_verified_at": copy.last_verified_at,
        "last_attempt_at": copy.last_attempt_at,
        "archived": copy.last_verdict == Verdict.ARCHIVED,
        "evidence": check
        and {
            "outcome": check.outcome, "by": check.source, "compared": check.compared, "checked_at": check.checked_at,
            "superseded": _is_superseded(copy, check),
        },
    }  # fmt: skip
