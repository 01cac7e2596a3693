"""The commands that only look: ls, show, stores."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

import typer

from worker.catalogue import Artifact, Copy, Pause, Scope
from worker.cli.arguments import Place, PlaceText, opened
from worker.cli.errors import Status
from worker.cli.output import AsJson, moment, out, print_json, size, table
from worker.cli.pause import told
from worker.context import Context
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


def stores(as_json: AsJson = False) -> None:
    """List the stores: whether each can be reached, and what is known of its copies."""
    with opened() as context:
        counts = context.catalogue.artifacts.count_by_state()
        with ThreadPoolExecutor(max_workers=8) as pool:  # one that does not answer must not hold up the others
            errors = dict(
                zip(context.stores, pool.map(lambda name: _reach(context, name), context.stores), strict=True)
            )
        paused = {pause.name: pause for pause in context.catalogue.pauses.all() if pause.scope is Scope.STORE}
        rows = [
            _store(context, name, errors[name], counts.get(name, {})) | {"paused": _paused(paused.get(name))}
            for name in context.stores
        ]
    if as_json:
        print_json({"stores": rows})
    else:
        columns = ("store", "type", "reachable", "copies", "oldest verified", "paused", "error")
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
                        row["paused"] and told(row["paused"]["since"], row["paused"]["reason"]),
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


def _paused(pause: Pause | None) -> dict[str, Any] | None:
    return None if pause is None else {"since": pause.since, "reason": pause.reason}


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
