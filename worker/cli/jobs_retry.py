"""Send jobs again that ended without success."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from shlex import quote

from worker import clock
from worker.catalogue import Artifact, CopyState, JobRecord
from worker.catalogue.job_admin import REDRIVABLE
from worker.cli.output import note
from worker.cli.session import Session
from worker.settings.model import NoBroker, Settings
from zot_artifact_client.contract import BATCH, DELETE, KINDS, UPLOAD, is_batch_job
from zot_artifact_client.errors import BrokerUnavailable

_AT_ONCE = 500


def why_not(session: Session, record: JobRecord) -> str | None:
    """Return why a job cannot be sent again, or None."""
    if record.kind == BATCH.kind and (record.result or {}).get("failed"):
        return f"it has ended; `zot-artifacts jobs retry --all --parent {record.id}` sends its failed jobs again"
    if record.state not in REDRIVABLE:
        return f"it is {record.state}, only dead, failed and cancelled jobs can be retried"
    if record.kind == BATCH.kind or record.kind not in KINDS:
        return f"a {record.kind} cannot be retried: send a new one, which skips what is done already"
    if record.kind == DELETE.kind:
        return _why_not_delete(session, record)
    if _is_staged(session.settings, record) and not Path(record.request["source"]).exists():
        return _why_not_upload(session, record)
    return None


def _why_not_delete(session: Session, record: JobRecord) -> str | None:
    """Return that a delete would delete a later version. That of a batch deletes only what the batch has seen."""
    newer = None if is_batch_job(record.id, record.parent) else _newer_version(session, record)
    if newer is None:
        return None
    return (
        f"it would delete version {newer.version} of {newer.path}, which was recorded after it: "
        f"`zot-artifacts jobs cancel {record.id}` ends it, and `zot-artifacts delete` deletes that version"
    )


def _why_not_upload(session: Session, record: JobRecord) -> str:
    """Return why an upload without its staged source cannot be sent again, and what else helps."""
    gone = "its staged source is gone"
    if newer := _newer_version(session, record):
        return f"{gone}, and version {newer.version} of {newer.path} was recorded after it: nothing is left to do"
    return f"{gone}: {way_out_of_missing_copies(session, record) or 'upload it again'}"


def _newer_version(session: Session, record: JobRecord) -> Artifact | None:
    """Return the version under the key of a job that another one has recorded since it was sent, if there is one.

    An upload that is sent again after that would replace the newer one, and a delete would delete it.
    """
    path = (record.request["bucket"], record.request["key"])
    current = session.catalogue.artifacts.current(*path)
    if current is None or current.created_at <= record.created_at:
        return None
    return None if path in session.catalogue.artifacts.uploaded_by(record.id, [path]) else current


def _is_staged(settings: Settings, record: JobRecord) -> bool:
    """Return whether the source of an upload is below the staging directory, also where its batch has staged it."""
    source = Path(record.request.get("source") or "")
    return bool(record.request.get("staged")) or settings.staging_dir in source.parents


def way_out_of_missing_copies(session: Session, record: JobRecord) -> str | None:
    """Return which stores have the bytes of an upload, and what adds the other copies.

    Returns None if no store has them, or a newer version or a delete has ended the need for them.
    """
    if record.kind != UPLOAD.kind:
        return None
    path = (record.request["bucket"], record.request["key"])
    uploaded = session.catalogue.artifacts.uploaded_by(record.id, [path]).get(path)
    copies = session.catalogue.artifacts.copies(uploaded) if uploaded else {}
    written = [store for store, copy in copies.items() if copy.state.good]
    missing = [store for store, copy in copies.items() if copy.state is CopyState.WRITING]
    if uploaded is None or uploaded.tombstoned_at is not None or not written:
        return None
    there = f"the bytes are in {', '.join(written)}"
    if not missing:
        return there
    return f"{there}; {adds_copies(uploaded, missing)}"


def adds_copies(artifact: Artifact, stores: Sequence[str]) -> str:
    """Return the command that adds copies that were never written, and says so."""
    to = " ".join(f"--to {store}" for store in stores)
    return f"`zot-artifacts replicate {quote(artifact.path)} {to}` adds the copy in {', '.join(stores)}"


def send_again(session: Session, records: list[JobRecord], rejected: dict[str, str]) -> Iterator[str]:
    """Send jobs again and yield their ids; add to `rejected` those that another command has sent again meanwhile."""
    for first in range(0, len(records), _AT_ONCE):
        _forget_results(session.settings, records[first : first + _AT_ONCE])
        page = []
        for record in records[first : first + _AT_ONCE]:
            if queued := _queue(session, record):
                page.append(queued)
                yield record.id
            else:
                rejected[record.id] = "another command has retried it just now"
        _store_queued(session.settings, page)
        _send(session.settings, page)


def _queue(session: Session, record: JobRecord) -> JobRecord | None:
    cause = {"type": "Retried", "message": "retried by hand"} | (
        {"previous": dict(record.error)} if record.error else {}
    )
    due = clock.now() + session.settings.jobs.lease
    return session.catalogue.job_admin.redrive(record.id, cause, due=due)


def _forget_results(settings: Settings, records: list[JobRecord]) -> None:
    """Remove the results and cancellations of the jobs before a worker can act on them."""
    from zot_artifact_client.result_backend import CeleryResultBackend

    with suppress(NoBroker, BrokerUnavailable):
        outcomes = CeleryResultBackend(settings.results_url, lambda _: None)
        try:
            for record in records:
                outcomes.forget(record.id)
        finally:
            outcomes.close()


def _store_queued(settings: Settings, records: list[JobRecord]) -> None:
    """Store that the jobs are queued, with their new fencing tokens, so that the end of an older attempt is refused."""
    from worker.jobs.result_backend import fenced_request, use_atomic_result_backend
    from zot_artifact_client.connection import broker_errors, is_redis
    from zot_artifact_client.result_backend import result_backend_app

    with suppress(NoBroker, BrokerUnavailable):
        url = settings.results_url
        if records and is_redis(url):
            with result_backend_app(url) as app, broker_errors("result backend", url):
                use_atomic_result_backend(app)
                for record in records:
                    app.backend.store_result(record.id, None, "PENDING", request=fenced_request(record))


def _send(settings: Settings, records: list[JobRecord]) -> None:
    """Send the messages; where that fails, `sweep.recover` sends them."""
    from zot_artifact_client.outgoing_messages import Outgoing
    from zot_artifact_client.publisher import Publisher

    def outgoing(record: JobRecord) -> Outgoing:
        spec = KINDS[record.kind]
        parent = record.parent if is_batch_job(record.id, record.parent) else None
        return Outgoing(spec.name, record.id, record.queue or spec.queue.value, dict(record.request), parent)

    try:
        publisher = Publisher(settings.broker_url)
        try:
            publisher.send_all([outgoing(record) for record in records])
        finally:
            publisher.close()
    except (NoBroker, BrokerUnavailable) as error:
        note(f"{error}; the workers send the jobs as soon as they reach it")
