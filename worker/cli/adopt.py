"""The command `adopt`."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import IO, Annotated, Any

import typer

from worker.artifacts.batch_lists import ListedAdoption
from worker.artifacts.disk_sort import DiskSort
from worker.artifacts.verify_layouts.checked_prefix import CheckedPrefix, Claim
from worker.artifacts.verify_layouts.sha256sums import claims_of, is_list, lists_above, lists_beside, sort_lists
from worker.catalogue import ADOPTED_AFTER_DELETE
from worker.cli.arguments import ArtifactPath, IdempotencyKey, NoWait, Timeout
from worker.cli.errors import Failure
from worker.cli.job_outcome import Outcome, finish, print_unnamed_failures
from worker.cli.output import AsJson, complain, note, print_json, say
from worker.cli.send_and_wait import WaitOptions, request_of, sender
from worker.cli.session import Session, opened
from worker.cli.stage_file import stage
from worker.exit_status import Status
from worker.storage.driver import ListedObject
from worker.storage.errors import InvalidKey, StorageError
from worker.storage.keys import check_bucket, check_existing_key
from worker.storage.spooling import spooling_in
from worker.storage.store import Store
from zot_artifact_client.contract import ADOPT, BATCH
from zot_artifact_client.job_ids import choose_id

_NAMED = 1000


def adopt(
    artifact: Annotated[
        str,
        typer.Argument(
            metavar="BUCKET/KEY", help="The object. With a slash at its end: all objects below this prefix."
        ),
    ],
    *,
    store: Annotated[str, typer.Option("--store", metavar="STORE", help="The store that has the object.")],
    first_read: Annotated[
        bool,
        typer.Option("--first-read", help="Record the digest of the bytes read now where the store keeps no digest."),
    ] = False,
    sums: Annotated[
        bool,
        typer.Option("--sums", help="Compare with the digests in SHA256SUMS and *.sha256 files of the same store."),
    ] = False,
    idempotency_key: IdempotencyKey = None,
    no_wait: NoWait = False,
    timeout: Timeout = None,
    as_json: AsJson = False,
) -> None:
    """Record objects that another program wrote into a store.

    Each object is read in full once, and its SHA-256 is compared with the one that the store keeps beside it.
    With --sums it is also compared with the lists of `sha256sum` below the prefix and in the directories above it.

    Examples:

        zot-artifacts adopt releases/app.tgz --store nas
        zot-artifacts adopt releases/ --store nas --first-read
        zot-artifacts adopt releases/1.2/ --store nas --sums
    """
    bucket, slash, prefix = artifact.partition("/")
    waiting = WaitOptions(not no_wait, timeout, idempotency_key)
    with opened(sends=True) as session:
        session.check_store(store)
        if first_read and not sums and (listed := _list_beside(session.stores[store], bucket, prefix)):
            note(f"{store}: {bucket}/{listed} may have the digest: with --sums it is compared, and counts as verified")
        place = Place(check_bucket(bucket), prefix, store) if slash and (not prefix or prefix.endswith("/")) else None
        if place is not None:
            outcome = _adopt_all(session, place, waiting, first_read=first_read, sums=sums)
        else:
            fields = {"store": store, "first_read": first_read or None}
            if sums:
                at = ArtifactPath.parse(artifact)
                fields["sha256"] = _listed_digest(session.stores[store], at.bucket, at.key)
            outcome = _adopt_one(session, ArtifactPath.parse(artifact), fields, waiting)
    if place is not None and outcome.result is not None:
        _print_adopted(place, outcome, outcome.result, as_json=as_json)
        raise typer.Exit(Status.BAD if place.failed else outcome.status)
    try:
        finish(outcome, waited=waiting.wait, as_json=as_json)
    except typer.Exit as end:
        raise typer.Exit(end.exit_code or (Status.BAD if place and place.failed else Status.GOOD)) from None


@dataclass(slots=True)
class Place:
    """The objects of a store below a prefix, and what the lists of digests name wrong there: the first ones by name."""

    bucket: str
    prefix: str
    store: str
    failed: int = 0
    failures: list[dict[str, str]] = field(default_factory=list)

    def fail(self, key: str, type_: str, message: str) -> None:
        """Count an object that is not adopted because of a list."""
        self.failed += 1
        if len(self.failures) < _NAMED:
            self.failures.append({"key": key, "type": type_, "message": message})
        complain(message)


def _list_beside(store: Store, bucket: str, key: str) -> str | None:
    """Return the key of a list of digests beside an object, or in the directory of a prefix; None for others."""
    with suppress(StorageError):  # the job says what is wrong with the store
        return next((each.key for each in lists_beside(CheckedPrefix(store, bucket), key)), None)
    return None


def _adopt_one(session: Session, at: ArtifactPath, fields: dict[str, Any], waiting: WaitOptions) -> Outcome:
    request = request_of(ADOPT, bucket=at.bucket, key=at.key, **fields)
    job_id = choose_id(ADOPT, idempotency_key=waiting.key)
    with sender(session, "adopt: waiting for a worker", waiting) as way:
        return way.wait(way.send_once(ADOPT, job_id, request))


def _adopt_all(session: Session, place: Place, waiting: WaitOptions, *, first_read: bool, sums: bool) -> Outcome:
    """Send one batch for all objects below a prefix. With `sums`, its list has the digests that the lists name."""
    fields: dict[str, object] = {"verb": ADOPT.kind, "stores": (place.store,), "first_read": first_read or None}
    job_id = choose_id(BATCH, idempotency_key=waiting.key)
    with sender(session, f"adopting {place.bucket}/{place.prefix}", waiting) as way:
        if sums:
            spool_dir = session.settings.spool_dir
            with spooling_in(spool_dir), tempfile.NamedTemporaryFile(dir=spool_dir) as file:
                _write_list(session, place, file, first_read=first_read)
                staged = stage(Path(file.name), session.settings, job_id, named_by_digest=True)
            request = request_of(BATCH, keys_from=str(staged.path), staged=True, **fields)
            job = way.send_staged(BATCH, job_id, request, staged)
        else:
            request = request_of(BATCH, bucket=place.bucket, prefix=place.prefix or None, **fields)
            job = way.send_once(BATCH, job_id, request)
        return way.wait(job)


def _write_list(session: Session, place: Place, file: IO[bytes], *, first_read: bool) -> None:
    """Write the list of what is adopted, with digests; the lists of digests only if their first read is the record.

    Raises:
        Failure: there is no such object.
    """
    below = CheckedPrefix(session.stores[place.store], place.bucket, place.prefix, spool_dir=session.settings.spool_dir)
    count = 0
    with below.sorter() as lists:
        for fault in sort_lists(below, chain(lists_above(below, place.prefix), below.listed()), lists):
            place.fail(fault.key, "BadList", f"{place.store}: {place.bucket}/{fault.key}: {fault.detail}")
        for row, sha256 in _with_digests(below, place, lists):
            if is_list(row.key) and not first_read:
                continue
            try:
                check_existing_key(place.bucket, row.key)
            except InvalidKey as error:
                place.fail(row.key, "InvalidKey", f"{place.store}: {place.bucket}: {error.message}")
                continue
            file.write(ListedAdoption(place.bucket, row.key, row.size or 0, sha256).line())
            count += 1
    file.flush()
    if not count:
        raise Failure(
            f"{place.store}: there is no object below {place.bucket}/{place.prefix} to adopt", type_="NotFound"
        )


def _with_digests(below: CheckedPrefix, place: Place, lists: DiskSort) -> Iterator[tuple[ListedObject, str | None]]:
    """Yield each object with the SHA-256 that the lists name, if they do; count what they name and what is gone."""
    named = (claim for claim in claims_of(lists) if claim.key.startswith(place.prefix))
    claim = next(named, None)
    for row in below.listed():
        while claim is not None and claim.key < row.key:
            _count_missing(place, claim)
            claim = next(named, None)
        if claim is None or claim.key != row.key:
            yield row, None
            continue
        if len(sums := _sha256_of(claim)) > 1:
            detail = f"{place.store}: {place.bucket}/{row.key}: {claim.by} name different digests"
            place.fail(row.key, "BadList", detail)
        else:
            yield row, next(iter(sums), None)
        claim = next(named, None)
    while claim is not None:
        _count_missing(place, claim)
        claim = next(named, None)


def _count_missing(place: Place, claim: Claim) -> None:
    detail = f"{place.store}: {place.bucket}/{claim.key} is not there, and {claim.by} names it"
    place.fail(claim.key, "NotFound", detail)


def _sha256_of(claim: Claim) -> set[str]:
    return {digest for algorithm, digest in claim.digests if algorithm == "sha256"}


def _listed_digest(store: Store, bucket: str, key: str) -> str:
    """Return the SHA-256 that a list beside or above an object names.

    Raises:
        Failure: no list names it.
    """
    place = CheckedPrefix(store, bucket)
    with place.sorter() as lists:
        for fault in sort_lists(place, lists_above(place, key), lists):
            complain(f"{store.name}: {bucket}/{fault.key}: {fault.detail}")
        for claim in claims_of(lists):
            if claim.key == key and len(sums := _sha256_of(claim)) == 1:
                return sums.pop()
            if claim.key == key and sums:
                raise Failure(f"{store.name}: {bucket}/{key}: {claim.by} name different digests", type_="BadList")
    raise Failure(f"{store.name}: no SHA256SUMS and no *.sha256 file names {bucket}/{key}", type_="NotFound")


def _print_adopted(place: Place, outcome: Outcome, result: Mapping[str, Any], *, as_json: bool) -> None:
    """Print how a batch has ended, together with what the lists of digests name wrong."""
    words = ("adopted", ADOPTED_AFTER_DELETE, "already_there")
    adopted, after_delete, unchanged = (result["outcomes"].get(word, 0) for word in words)
    adopted += after_delete
    failed = place.failed + result["failed"]
    failures = [
        {"key": each["key"], "type": each["outcome"], "message": each["message"]} for each in result["failures"]
    ]
    for each in failures:
        complain(each["message"])
    print_unnamed_failures(outcome.job, result)
    if as_json:
        print_json(
            {"job": outcome.job, "bucket": place.bucket, "prefix": place.prefix, "store": place.store,
             "adopted": adopted, "after_delete": after_delete, "unchanged": unchanged, "failed": failed,
             "failures": [*place.failures, *failures]}
        )  # fmt: skip
    else:
        told = f", {failed} not" if failed else ""
        new = f" ({after_delete} of them after a delete, as new versions)" if after_delete else ""
        say(f"{place.store}: {place.bucket}/{place.prefix}: {adopted} adopted{new}, {unchanged} known already{told}")
