"""The commands that only look: ls, show, jobs, stores."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

import typer

from worker.catalogue import Artifact, Copy, JobRecord
from worker.cli.failure import Failure, Status
from worker.cli.outcome import outcome_of
from worker.cli.output import AsJson, moment, out, print_json, size, table
from worker.cli.place import Place, PlaceText, opened
from worker.cli.refused import show_refused
from worker.context import Context
from worker.settings import load_settings
from worker.storage.errors import StorageError

_PAGE = 1000


def ls(
    prefix: Annotated[str, typer.Argument(metavar="[BUCKET[/PREFIX]]", help="Only these.", show_default=False)] = "",
    as_json: AsJson = False,
) -> None:
    """List artifacts: their size, version and SHA-256."""
    bucket, _, start = prefix.partition("/")
    with opened() as context:
        found = _pages(context, bucket or None, start)
        if as_json:
            print_json({"artifacts": [_brief(artifact) for artifact in found]})
            return
        rows = [(a.path, size(a.digest.size), a.version, a.digest.sha256[:16], moment(a.created_at)) for a in found]
    if rows:
        out().print(table(("artifact", "size", "version", "sha256", "created"), rows))


def show(place: PlaceText, as_json: AsJson = False) -> None:
    """Show an artifact and what is known of each copy."""
    at = Place.parse(place)
    with opened() as context:
        artifact = context.artifact(at.bucket, at.key)
        copies = [copy for copy in context.catalogue.artifacts.copies(artifact).values() if copy.state.present]
    if as_json:
        print_json({**_brief(artifact), "copies": [_copy(copy) for copy in copies]})
        return
    out().print(f"{artifact.path} version {artifact.version} {size(artifact.digest.size)}", markup=False)
    out().print(f"sha256 {artifact.digest.sha256}", markup=False)
    for name, value in artifact.metadata.items():
        out().print(f"{name}={value}", markup=False)
    rows = [(copy.store, copy.state.value, copy.last_verified_at, copy.last_attempt_at) for copy in copies]
    out().print(table(("store", "state", "last verified", "last attempt"), rows))


def jobs(
    job: Annotated[str | None, typer.Argument(metavar="[ID]", help="One job.", show_default=False)] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many at most.")] = 50,
    refused: Annotated[bool, typer.Option("--refused", help="The messages that no worker could take.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the latest jobs, or show one: its state, its attempts, how it ended."""
    if refused:
        show_refused(load_settings(), limit=limit, as_json=as_json)
        return
    with opened() as context:
        if job is not None:
            _one_job(context, job, as_json=as_json)
            return
        records = context.catalogue.jobs.latest(limit=limit)
    if as_json:
        print_json({"jobs": [_job(record) for record in records]})
    elif records:
        rows = [
            (r.id, r.kind, _about(r), r.state, r.attempts, r.created_at, (r.error or {}).get("message"))
            for r in records
        ]
        out().print(table(("job", "kind", "artifact", "state", "attempts", "created", "error"), rows))


def stores(as_json: AsJson = False) -> None:
    """List the stores: whether each can be reached, and what is known of its copies."""
    with opened() as context:
        counts = context.catalogue.artifacts.count_by_state()
        with ThreadPoolExecutor(max_workers=8) as pool:  # one that does not answer must not hold up the others
            errors = dict(
                zip(context.stores, pool.map(lambda name: _reach(context, name), context.stores), strict=True)
            )
        rows = [_store(context, name, errors[name], counts.get(name, {})) for name in context.stores]
    if as_json:
        print_json({"stores": rows})
    else:
        columns = ("store", "type", "reachable", "copies", "oldest verified", "error")
        out().print(
            table(
                columns,
                [
                    (
                        row["store"],
                        row["type"],
                        "reachable" if row["reachable"] else "unreachable",
                        ", ".join(f"{count} {state}" for state, count in row["copies"].items()) or None,
                        row["oldest_verified_at"],
                        row["error"],
                    )
                    for row in rows
                ],
            )
        )
    raise typer.Exit(Status.GOOD if all(row["reachable"] for row in rows) else Status.UNKNOWN)


def _pages(context: Context, bucket: str | None, prefix: str) -> Iterator[Artifact]:
    after = ("", "")
    while page := context.catalogue.artifacts.page(bucket, prefix, after, _PAGE):
        yield from page
        after = (page[-1].bucket, page[-1].key)


def _brief(artifact: Artifact) -> dict[str, Any]:
    return {
        "bucket": artifact.bucket,
        "key": artifact.key,
        "version": artifact.version,
        "size": artifact.digest.size,
        "sha256": artifact.digest.sha256,
    }


def _copy(copy: Copy) -> dict[str, Any]:
    return {
        "store": copy.store,
        "state": copy.state.value,
        "last_verified_at": copy.last_verified_at,
        "last_attempt_at": copy.last_attempt_at,
    }


def _job(record: JobRecord) -> dict[str, Any]:
    times = {"created_at": record.created_at, "started_at": record.started_at, "finished_at": record.finished_at}
    about = {"request": dict(record.request), "progress": record.progress and dict(record.progress)}
    return {**outcome_of(record).document(), **about, **times}


def _one_job(context: Context, job: str, *, as_json: bool) -> None:
    record = context.catalogue.jobs.get(job)
    if record is None:
        raise Failure(
            f"no worker has taken a job {job}: it waits in its queue, or there is none; see `zot-artifacts jobs`",
            Status.UNKNOWN,
            type_="UnknownJob",
        )
    document = _job(record)
    if as_json:
        print_json(document)
        return
    for name, value in document.items():
        if value not in (None, {}, []):
            out().print(f"{name:12} {moment(value) if name.endswith('_at') else value}", markup=False)


def _about(record: JobRecord) -> str | None:
    bucket, key = record.request.get("bucket"), record.request.get("key")
    return f"{bucket}/{key}" if bucket else None


def _reach(context: Context, name: str) -> str | None:
    try:
        context.stores[name].health_check()
    except StorageError as error:
        return error.message
    return None


def _store(context: Context, name: str, error: str | None, counts: dict[str, int]) -> dict[str, Any]:
    return {
        "store": name,
        "type": context.settings.stores[name].type,
        "reachable": error is None,
        "error": error,
        "copies": counts,
        "oldest_verified_at": context.catalogue.artifacts.oldest_verified(name),
    }
