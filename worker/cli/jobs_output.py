"""Print jobs: many as a table, one with all its fields, or both as JSON."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from worker import clock
from worker.catalogue import JobRecord, WaitingJobs
from worker.cli.job_outcome import outcome_of
from worker.cli.output import flat, out, print_json, print_table, say
from worker.counted import counted
from worker.readable import age, moment, size
from zot_artifact_client.contract import ADOPT, BATCH, PAGE, REPLICATE, VERIFY, JobState
from zot_artifact_client.text_escaping import without_secrets

_SHORT_ID = 8


def _document(record: JobRecord) -> dict[str, Any]:
    """Return a job as JSON, without its traceback."""
    times = {"created_at": record.created_at, "started_at": record.started_at, "finished_at": record.finished_at}
    about = {"request": _shown_request(record), "progress": record.progress and dict(record.progress)}
    return {**asdict(outcome_of(record)), **about, **times}


def _short_id(id_: str) -> str:
    """Return the beginning of a job's id, which is enough to name it; the number of a batch's job is kept."""
    root, dot, number = id_.partition(".")
    return f"{root[:_SHORT_ID]}{dot}{number}"


def print_jobs(records: list[JobRecord], waiting: Mapping[str, Mapping[str, WaitingJobs]], *, as_json: bool) -> None:
    """Print jobs as a table, which is narrow on a terminal, or as JSON.

    `waiting`: for each batch that runs, those of its jobs that wait for a store, by store.
    """
    if as_json:
        print_json({"jobs": [_document(record) | _waiting(waiting.get(record.id)) for record in records]})
        return
    narrow, now = out().is_terminal, clock.now()
    rows = [
        (
            _short_id(r.id) if narrow else r.id,
            r.kind,
            _artifact(r),
            r.shown_state,
            r.attempts,
            age(r.created_at, now) if narrow else r.created_at,
            _expired_lease(r) or (r.error or {}).get("message") or _failed(r) or _waits(waiting.get(r.id, {})),
        )
        for r in records
    ]
    columns = ("job", "kind", "artifact", "state", "attempts", "age" if narrow else "created", "error")
    empty = "no such jobs; one that no worker has taken yet is not listed"
    print_table(columns, rows, empty=empty, flexible=("artifact", "error"))
    for record in records:
        if told := _failed(record):
            say(f"{_short_id(record.id) if narrow else record.id}: {told}; {_way_out(record)}")


def print_job(
    record: JobRecord,
    webhooks: Mapping[str, str],
    copies: str | None,
    waiting: Mapping[str, WaitingJobs],
    *,
    traceback: bool,
    as_json: bool,
) -> None:
    """Print a job, which stores have the bytes of its upload and, by receiver, the state of its end.

    `waiting`: by store, those of its jobs that wait for it.
    """
    if as_json:
        more = {"error": record.error and dict(record.error), "copies": copies, "webhooks": webhooks}
        print_json(_document(record) | more | _waiting(waiting))
        return
    for name, value in (*_fields(record), ("copies", copies)):
        if value not in (None, ""):
            say(f"{name:12} {value}")
    if _failed(record):
        say(f"{'way out':12} {_way_out(record)}")
    for store, each in sorted(waiting.items()):
        since = f" since {moment(each.since)}" if each.since else ""
        why = (each.refusal or each.reason or "").removeprefix(f"{store}: ")
        say(f"{'waiting':12} {counted(each.count, 'job')} for {store}{since}: {why}")
    for name, state in webhooks.items():
        say(f"{'webhook':12} {name}: {state}")
    for cause in causes_of(record) if traceback else ():
        for line in str(cause.get("traceback", "no traceback was kept")).splitlines():
            say(line)


def _waiting(jobs: Mapping[str, WaitingJobs] | None) -> dict[str, Any]:
    return {} if jobs is None else {"waiting": {store: asdict(each) for store, each in jobs.items()}}


def _waits(jobs: Mapping[str, WaitingJobs]) -> str | None:
    """Return for which stores jobs of a batch wait, None if none waits; `jobs ID` says why."""
    return (
        ", ".join(f"{counted(each.count, 'job')} waiting for {store}" for store, each in sorted(jobs.items())) or None
    )


def _expired_lease(record: JobRecord) -> str | None:
    """Return since when a job has waited whose lease has expired, and the command that tells why; None of others."""
    if (since := record.waits_since) is None:
        return None
    return f"its worker died or cannot use the catalogue since {moment(since)}: `zot-artifacts status` has the cause"


def _failed(record: JobRecord) -> str | None:
    """Return how many objects failed in a batch or a page, None if none did: its own state does not tell it."""
    result = record.result if record.kind in {BATCH.kind, PAGE.kind} else None
    if not result or not result.get("failed"):
        return None
    return f"{result['failed']} of {counted(result['objects'], 'object')} failed"


def _way_out(record: JobRecord) -> str:
    """Return the commands that name the objects that failed, and redrive those that are jobs of their own."""
    if record.kind == PAGE.kind:
        return f"`zot-artifacts jobs {record.id}` names them"
    named = f"`zot-artifacts jobs --parent {record.id} --failed` lists the jobs and pages"
    if record.request.get("verb") == VERIFY.kind:
        return f"{named}, `zot-artifacts findings` tells what is open"
    return f"{named}, `zot-artifacts jobs retry --all --parent {record.id}` redrives the jobs"


def causes_of(record: JobRecord) -> Iterator[Mapping[str, Any]]:
    """Yield the error of the last attempt, and the earlier one if that was the cause."""
    cause = record.error
    while cause:
        yield cause
        cause = cause.get("previous")


def _shown_request(record: JobRecord) -> dict[str, Any]:
    """Return a request without the secrets that the URL of its source may have."""
    return {
        name: without_secrets(value) if name == "source" and isinstance(value, str) else value
        for name, value in record.request.items()
    }


def _artifact(record: JobRecord) -> str | None:
    """Return the target of a job: an artifact, or for a batch its prefix or its list."""
    request = record.request
    bucket, key = request.get("bucket"), request.get("key")
    if record.kind == BATCH.kind:
        return (
            f"{request.get('verb')} {bucket}/{request.get('prefix') or ''}*"
            if bucket
            else f"{request.get('verb')} list"
        )
    if record.kind == PAGE.kind:
        return _page(request)
    if not bucket:
        return None
    return f"{bucket}/{key}" if key else str(bucket)


_CLAIMED = {VERIFY.kind: "what is due in", REPLICATE.kind: "bad or absent copies of", ADOPT.kind: "orphans of"}
"""What pages of sweeps work on in a store, by verb."""


def _page(request: Mapping[str, Any]) -> str:
    """Return the target of a page: its range of keys, what a sweep found in a store, or a part of a list."""
    verb, keys, claim = str(request.get("verb")), request.get("range"), request.get("claim")
    if keys:
        after = f" after {keys['after']}," if keys.get("after") else ""
        return f"{verb} {keys['bucket']}/{keys.get('prefix') or ''}*{after} up to {keys['until']}"
    return f"{verb} {_CLAIMED.get(verb, 'copies of')} {claim['store']}" if claim else f"{verb} list"


def _fields(record: JobRecord) -> Iterator[tuple[str, object]]:
    yield "job", record.id
    yield "kind", record.kind
    yield "artifact", _artifact(record)
    yield "state", record.shown_state
    yield "attempts", record.attempts
    yield "progress", _progress(record)
    for name, value in (("created", record.created_at), ("started", record.started_at), ("ended", record.finished_at)):
        yield name, value and moment(value)
    yield "waiting", _expired_lease(record)
    if record.state in (JobState.QUEUED, JobState.RETRYING) and record.due_at:
        yield "next attempt", f"by {moment(record.due_at)}"
    for number, cause in enumerate(causes_of(record)):
        yield "before that" if number else "error", f"{cause.get('type')}: {cause.get('message')}"
    label = "request"
    for name, value in _shown_request(record).items():
        if name not in {"bucket", "key"}:
            yield label, f"{name}={flat(value)}"
            label = ""
    for name, value in (record.result or {}).items():
        if name not in {"bucket", "key", "job"}:
            yield from _result_lines(name, value)


def _result_lines(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """Yield a list of copies or failures as one line each, every other value as one line."""
    if isinstance(value, list) and value and isinstance(value[0], Mapping):
        for each in value:
            yield name, flat(each)
    elif value not in (None, [], {}):
        yield name, size(value) if name in {"size", "bytes"} and isinstance(value, int) else flat(value)


def _progress(record: JobRecord) -> str | None:
    progress = record.progress
    if not progress:
        return None
    done, total = progress.get("bytes_done") or 0, progress.get("bytes_total")
    parts = [str(progress.get("step") or "")]
    if total or done:
        parts.append(f"{size(done)} of {size(total)} ({100 * done // total} %)" if total else size(done))
    if progress.get("objects_total") or progress.get("objects_done"):
        all_ = progress.get("objects_total")
        parts.append(f"{progress.get('objects_done', 0)} of {'? objects' if all_ is None else counted(all_, 'object')}")
    return ", ".join(part for part in parts if part)
