"""The command `adopt`."""

import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from worker.cli.arguments import ArtifactPath, IdempotencyKey, NoWait, Timeout
from worker.cli.errors import Failure, Status
from worker.cli.outcome import Outcome, finish
from worker.cli.output import AsJson, complain, print_json, say
from worker.cli.session import Session, opened
from worker.cli.submit import Sender, request_of, sender
from worker.storage.errors import InvalidKey
from worker.storage.keys import check_bucket, check_existing_key
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
    idempotency_key: IdempotencyKey = None,
    no_wait: NoWait = False,
    timeout: Timeout = None,
    as_json: AsJson = False,
) -> None:
    """Record objects that another program wrote into a store.

    Each object is read in full once, and its SHA-256 compared with the one that the store keeps beside it.

    Examples:

        zot-artifacts adopt releases/app.tgz --store nas
        zot-artifacts adopt releases/ --store nas --first-read
    """
    bucket, slash, prefix = artifact.partition("/")
    with opened() as session:
        session.store_names([store])
        fields = {"store": store, "first_read": first_read or None}
        if slash and (not prefix or prefix.endswith("/")):
            if no_wait or idempotency_key:
                option = "--no-wait" if no_wait else "--idempotency-key"
                raise Failure(f"{option} is for one object, {artifact!r} names many", Status.USAGE, type_="UsageError")
            tally = _adopt_all(session, Tally(check_bucket(bucket), prefix, store), fields, timeout)
        else:
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
    with sender(session, "adopt: waiting for a worker") as way:
        job = way.client.job(job_id, ADOPT) if way.known(ADOPT, job_id, request) else way.send(ADOPT, job_id, request)
        return way.wait(job, limit) if wait else Outcome(job_id, ADOPT.kind)


def _adopt_all(session: Session, tally: Tally, fields: dict[str, Any], limit: float | None) -> Tally:
    """Send a job for each object of a listing, `IN_FLIGHT` at a time, and count how they end."""
    under_way: deque[tuple[str, Job[Any]]] = deque()
    deadline = None if limit is None else time.monotonic() + limit
    with sender(session, f"adopting {tally.bucket}/{tally.prefix}") as way:
        for row in session.stores[tally.store].list_objects(tally.bucket, tally.prefix):
            if len(under_way) == IN_FLIGHT:
                _await_first(way, tally, under_way, deadline)
            try:
                check_existing_key(tally.bucket, row.key)
            except InvalidKey as error:
                tally.fail(row.key, "InvalidKey", f"{tally.store}: {tally.bucket}: {error.message}", Status.BAD)
                continue
            request: AdoptRequest = request_of(ADOPT, bucket=tally.bucket, key=row.key, **fields)
            under_way.append((row.key, way.send(ADOPT, choose_id(ADOPT), request)))
        while under_way:
            _await_first(way, tally, under_way, deadline)
    if tally.adopted + tally.unchanged + tally.failed == 0:
        raise Failure(f"{tally.store}: there is no object below {tally.bucket}/{tally.prefix}", type_="NotFound")
    return tally


def _await_first(way: Sender, tally: Tally, under_way: "deque[tuple[str, Job[Any]]]", deadline: float | None) -> None:
    key, job = under_way.popleft()
    outcome = way.wait(job, None if deadline is None else max(0.0, deadline - time.monotonic()))
    tally.count(key, outcome)
    if not outcome.ended and deadline is not None and time.monotonic() >= deadline:
        raise Failure(
            f"the time is up: {tally.adopted} objects of {tally.bucket}/{tally.prefix} were adopted, {tally.unchanged} "
            "were known; run the same command again to continue",
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
