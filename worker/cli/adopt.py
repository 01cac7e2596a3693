"""The command `adopt`."""

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Annotated, Any

import typer

from worker.artifacts.disk_sort import DiskSort
from worker.artifacts.verify_layouts.checked_prefix import CheckedPrefix, Claim
from worker.artifacts.verify_layouts.sha256sums import claims_of, is_list, lists_above, sort_lists
from worker.cli.arguments import ArtifactPath, IdempotencyKey, NoWait, Timeout
from worker.cli.errors import Failure, Status
from worker.cli.job_outcome import Outcome, finish
from worker.cli.output import AsJson, complain, note, print_json, say
from worker.cli.send_and_wait import Sender, request_of, sender
from worker.cli.session import Session, opened
from worker.counted import counted
from worker.storage.driver import ListedObject
from worker.storage.errors import InvalidKey
from worker.storage.keys import check_bucket, check_existing_key
from worker.storage.store import Store
from zot_artifact_client.contract import ADOPT, AdoptRequest
from zot_artifact_client.job_ids import choose_id

if TYPE_CHECKING:
    from zot_artifact_client import Job

IN_FLIGHT = 32
"""Jobs that wait or run at a time: the broker has no memory for a job for each object of a long listing."""
_NAMED = 1000


def adopt(
    artifact: Annotated[
        str,
        typer.Argument(
            metavar="BUCKET/KEY", help="The object. With a slash at its end: all objects below this prefix."
        ),
    ],
    *,
    store: Annotated[str, typer.Option("--store", metavar="STORE", help="The store that holds the object.")],
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
    with opened(existing=True, sends=True) as session:
        session.store_names([store])
        fields = {"store": store, "first_read": first_read or None}
        if slash and (not prefix or prefix.endswith("/")):
            if no_wait or idempotency_key:
                option = "--no-wait" if no_wait else "--idempotency-key"
                raise Failure(f"{option} is for one object, {artifact!r} names many", Status.USAGE, type_="UsageError")
            tally = _adopt_all(session, Tally(check_bucket(bucket), prefix, store), fields, timeout, sums=sums)
        else:
            if sums:
                at = ArtifactPath.parse(artifact)
                fields["sha256"] = _listed_digest(session.stores[store], at.bucket, at.key)
            outcome = _adopt_one(
                session, ArtifactPath.parse(artifact), fields, idempotency_key, wait=not no_wait, limit=timeout
            )
            finish(outcome, waited=not no_wait, as_json=as_json)
    _end(tally, as_json=as_json)


@dataclass(slots=True)
class Tally:
    """How the jobs of a prefix ended. The first thousand objects that were not adopted are kept by name."""

    bucket: str
    prefix: str
    store: str
    adopted: int = 0
    unchanged: int = 0
    failed: int = 0
    failures: list[dict[str, str]] = field(default_factory=list)
    status: Status = Status.GOOD

    def count(self, key: str, outcome: Outcome) -> None:
        """Count one job by its end."""
        if outcome.result is not None:
            self.unchanged += bool(outcome.result["unchanged"])
            self.adopted += not outcome.result["unchanged"]
            return
        told = outcome.error or {"type": "NotDone", "message": f"job {outcome.job} is still {outcome.state}"}
        self.fail(key, told["type"], told["message"], outcome.status)

    def fail(self, key: str, type_: str, message: str, status: Status) -> None:
        """Count an object that was not adopted; the exit status of a bad one wins over that of an unreadable one."""
        self.failed += 1
        if len(self.failures) < _NAMED:
            self.failures.append({"key": key, "type": type_, "message": message})
        self.status = Status.BAD if Status.BAD in {status, self.status} else Status.UNKNOWN
        complain(message)

    def document(self) -> dict[str, Any]:
        """Return the tally as the JSON document."""
        names = ("bucket", "prefix", "store", "adopted", "unchanged", "failed", "failures")
        return {name: getattr(self, name) for name in names}


def _adopt_one(
    session: Session, at: ArtifactPath, fields: dict[str, Any], key: str | None, *, wait: bool, limit: float | None
) -> Outcome:
    request = request_of(ADOPT, bucket=at.bucket, key=at.key, **fields)
    job_id = choose_id(ADOPT, idempotency_key=key)
    with sender(session, "adopt: waiting for a worker", key) as way:
        job = way.send_once(ADOPT, job_id, request)
        return way.wait(job, limit) if wait else Outcome(job_id, ADOPT.kind)


def _adopt_all(
    session: Session, tally: Tally, fields: dict[str, Any], limit: float | None, *, sums: bool = False
) -> Tally:
    """Send a job for each object of a listing, `IN_FLIGHT` at a time, and count how they end.

    With `sums` the lists of digests themselves are left out, unless their first read is to be the record.
    """
    under_way: deque[tuple[str, Job[Any]]] = deque()
    deadline = None if limit is None else time.monotonic() + limit
    place = CheckedPrefix(session.stores[tally.store], tally.bucket, tally.prefix, spool_dir=session.settings.spool_dir)
    with sender(session, f"adopting {tally.bucket}/{tally.prefix}") as way, place.sorter() as lists:
        if sums:
            _read_lists(place, tally, lists)
        try:
            for row, sha256 in _with_digests(place, tally, lists):
                if sums and is_list(row.key) and not fields.get("first_read"):
                    continue
                if len(under_way) == IN_FLIGHT:
                    _await_first(way, tally, under_way, deadline)
                try:
                    check_existing_key(tally.bucket, row.key)
                except InvalidKey as error:
                    tally.fail(row.key, "InvalidKey", f"{tally.store}: {tally.bucket}: {error.message}", Status.BAD)
                    continue
                request: AdoptRequest = request_of(ADOPT, bucket=tally.bucket, key=row.key, sha256=sha256, **fields)
                under_way.append((row.key, way.send(ADOPT, choose_id(ADOPT), request)))
            while under_way:
                _await_first(way, tally, under_way, deadline)
        except KeyboardInterrupt:
            if under_way:
                ids = ", ".join(job.id for _, job in under_way)
                note(f"these jobs continue: {ids}; run the same command again for the rest")
            raise
    if tally.adopted + tally.unchanged + tally.failed == 0:
        raise Failure(f"{tally.store}: there is no object below {tally.bucket}/{tally.prefix}", type_="NotFound")
    return tally


def _read_lists(place: CheckedPrefix, tally: Tally, lists: DiskSort) -> None:
    """Sort the digests of all lists below the prefix and of those in the directories above it."""
    for fault in sort_lists(place, chain(lists_above(place, tally.prefix), place.listed()), lists):
        tally.fail(fault.key, "BadList", f"{tally.store}: {tally.bucket}/{fault.key}: {fault.detail}", Status.BAD)


def _with_digests(place: CheckedPrefix, tally: Tally, lists: DiskSort) -> Iterator[tuple[ListedObject, str | None]]:
    """Yield each object with the SHA-256 that the lists name, if they do; count what they name and what is gone."""
    named = (claim for claim in claims_of(lists) if claim.key.startswith(tally.prefix))
    claim = next(named, None)
    for row in place.listed():
        while claim is not None and claim.key < row.key:
            _count_missing(tally, claim)
            claim = next(named, None)
        if claim is None or claim.key != row.key:
            yield row, None
            continue
        if len(sums := _sha256_of(claim)) > 1:
            detail = f"{tally.store}: {tally.bucket}/{row.key}: {claim.by} name different digests"
            tally.fail(row.key, "BadList", detail, Status.BAD)
        else:
            yield row, next(iter(sums), None)
        claim = next(named, None)
    while claim is not None:
        _count_missing(tally, claim)
        claim = next(named, None)


def _count_missing(tally: Tally, claim: Claim) -> None:
    detail = f"{tally.store}: {tally.bucket}/{claim.key} is not there, and {claim.by} names it"
    tally.fail(claim.key, "NotFound", detail, Status.BAD)


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


def _await_first(way: Sender, tally: Tally, under_way: "deque[tuple[str, Job[Any]]]", deadline: float | None) -> None:
    key, job = under_way.popleft()
    outcome = way.wait(job, None if deadline is None else max(0.0, deadline - time.monotonic()))
    tally.count(key, outcome)
    if not outcome.ended and deadline is not None and time.monotonic() >= deadline:
        raise Failure(
            f"the time is up: {counted(tally.adopted, 'object')} of {tally.bucket}/{tally.prefix} adopted, "
            f"{tally.unchanged} known before; run the same command again to continue",
            Status.UNKNOWN,
            type_="WaitTimeout",
        )


def _end(tally: Tally, *, as_json: bool) -> None:
    if as_json:
        print_json(tally.document())
    else:
        failed = f", {tally.failed} not" if tally.failed else ""
        found = f"{tally.adopted} adopted, {tally.unchanged} known already{failed}"
        say(f"{tally.store}: {tally.bucket}/{tally.prefix}: {found}")
    raise typer.Exit(tally.status)
