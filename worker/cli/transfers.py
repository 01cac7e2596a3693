"""The commands that send a job: upload, replicate, verify, delete."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from worker.cli.arguments import Place, PlaceText, opened, seconds, store_names
from worker.cli.batches import All, InFlight, KeysFrom, Many, SomePlace, run_many
from worker.cli.errors import Failure, Status
from worker.cli.outcome import Outcome
from worker.cli.output import AsJson, out, print_json
from worker.cli.report import tell
from worker.cli.staging import check_file, stage, within_roots
from worker.cli.submit import Sender, request_of, sender
from worker.context import Context
from zot_artifact_client import BrokerUnavailable
from zot_artifact_client.client import choose_id
from zot_artifact_client.contract import DELETE, REPLICATE, UPLOAD, VERIFY, TaskSpec, UploadRequest

Stores = Annotated[list[str] | None, typer.Option("--store", metavar="STORE", help="Only this store; may be repeated.")]
To = Annotated[list[str], typer.Option("--to", metavar="STORE", help="Where a copy should be; may be repeated.")]
IdempotencyKey = Annotated[
    str | None, typer.Option(metavar="TEXT", help="Sent again with the same one, it is the same job.")
]
NoWait = Annotated[bool, typer.Option("--no-wait", help="Print the job's id and do not wait for its end.")]
Timeout = Annotated[
    float | None,
    typer.Option(parser=seconds, metavar="TIME", help="Wait no longer than this, such as 90s; the job goes on."),
]


def upload(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A file, or a URL of a host that the worker knows.")],
    place: PlaceText,
    *,
    sha256: Annotated[str | None, typer.Option(metavar="HEX", help="The SHA-256 that the bytes must have.")] = None,
    store: Stores = None,
    metadata: Annotated[list[str] | None, typer.Option(metavar="K=V", help="Kept with it; may be repeated.")] = None,
    storage_class: Annotated[
        list[str] | None, typer.Option(metavar="STORE=CLASS", help="The class or tier to use there; may be repeated.")
    ] = None,
    idempotency_key: IdempotencyKey = None,
    no_wait: NoWait = False,
    timeout: Timeout = None,
    as_json: AsJson = False,
) -> None:
    """Bring a file or a URL under a key, to the stores that placement or --store names."""
    at = Place.parse(place)
    with opened() as context:
        path = None if "://" in source else check_file(source)
        fields = {
            "source": source if path is None else _text(path),
            "sha256": sha256,
            "stores": store_names(context, store),
            "metadata": _pairs("--metadata", metadata or []),
            "storage_classes": _pairs("--storage-class", storage_class or []),
        }
        request = request_of(UPLOAD, bucket=at.bucket, key=at.key, **fields)
        job_id = choose_id(UPLOAD, idempotency_key=idempotency_key)
        with sender(context, "uploading") as way:
            outcome = upload_one(way, job_id, request, path, wait=not no_wait, timeout=timeout)
    finish(outcome, waited=not no_wait, as_json=as_json)


def replicate(
    place: SomePlace = "",
    *,
    to: To,
    every: All = False,
    keys_from: KeysFrom = None,
    in_flight: InFlight = None,
    idempotency_key: IdempotencyKey = None,
    no_wait: NoWait = False,
    timeout: Timeout = None,
    as_json: AsJson = False,
) -> None:
    """Bring copies to more stores, or mend those there, from any copy whose bytes are right."""
    with opened() as context:
        fields = {"to": store_names(context, to)}
        many = Many(place, every, keys_from, in_flight)
        outcome = _run(context, REPLICATE, many, fields, key=idempotency_key, wait=not no_wait, timeout=timeout)
    finish(outcome, waited=not no_wait, as_json=as_json)


def verify(
    place: SomePlace = "",
    *,
    store: Stores = None,
    every: All = False,
    keys_from: KeysFrom = None,
    in_flight: InFlight = None,
    idempotency_key: IdempotencyKey = None,
    no_wait: NoWait = False,
    timeout: Timeout = None,
    as_json: AsJson = False,
) -> None:
    """Read all bytes of the copies and hold them against the recorded digest."""
    with opened() as context:
        fields = {"stores": store_names(context, store)}
        many = Many(place, every, keys_from, in_flight)
        outcome = _run(context, VERIFY, many, fields, key=idempotency_key, wait=not no_wait, timeout=timeout)
    finish(outcome, waited=not no_wait, as_json=as_json)


def delete(
    place: SomePlace = "",
    *,
    store: Stores = None,
    allow_last: Annotated[bool, typer.Option("--allow-last", help="Even if no good copy remains elsewhere.")] = False,
    everything: Annotated[bool, typer.Option("--everything", help="With --all BUCKET: all that is in it.")] = False,
    every: All = False,
    keys_from: KeysFrom = None,
    in_flight: InFlight = None,
    idempotency_key: IdempotencyKey = None,
    no_wait: NoWait = False,
    timeout: Timeout = None,
    as_json: AsJson = False,
) -> None:
    """Delete an artifact everywhere, or its copies in the stores that --store names.

    With --all a whole prefix, which `zot-artifacts ls` shows beforehand; a whole bucket takes --everything as well.
    """
    with opened() as context:
        fields: dict[str, object] = {"stores": store_names(context, store), "allow_last": allow_last or None}
        many = Many(place, every, keys_from, in_flight)
        if everything or (every and not place.partition("/")[2]):
            fields["everything"] = _everything(place, every=every, sure=everything)
        outcome = _run(context, DELETE, many, fields, key=idempotency_key, wait=not no_wait, timeout=timeout)
    finish(outcome, waited=not no_wait, as_json=as_json)


def upload_one(
    way: Sender, job_id: str, request: UploadRequest, path: Path | None, *, wait: bool, timeout: float | None = None
) -> Outcome:
    """Send an upload; a file that the worker may not read where it is goes to its staging directory first.

    Raises:
        Failure: the file cannot be staged, or is not what was announced; nothing was sent.
        BrokerUnavailable: nothing was sent, and nothing is left in the staging directory.
    """
    settings = way.context.settings
    if way.known(UPLOAD, job_id, request):
        job = way.client.job(job_id, UPLOAD)
    elif path is None or within_roots(path, settings):
        job = way.send(UPLOAD, job_id, request)
    else:
        way.shown.expect(path.stat().st_size, "staging")
        staged = stage(path, settings, job_id, request.sha256, way.shown.moved)
        update = {"source": str(staged.path), "sha256": staged.sha256, "staged": True}
        try:
            job = way.send(UPLOAD, job_id, request.model_copy(update=update))
        except BrokerUnavailable:
            staged.drop()
            raise
    return way.stay(job, timeout) if wait else Outcome(job_id, UPLOAD.kind)


def finish(outcome: Outcome, *, waited: bool, as_json: bool) -> None:
    """Print the outcome and end the command with the status that it stands for."""
    if as_json:
        print_json(outcome.document())
    if waited and not (as_json and outcome.result is not None):
        tell(outcome)
    elif not waited and not as_json:
        out().print(outcome.job, markup=False)
    raise typer.Exit(outcome.status if waited else Status.GOOD)


def _run(
    context: Context,
    spec: TaskSpec[Any, Any],
    many: Many,
    fields: Mapping[str, object],
    *,
    key: str | None,
    wait: bool,
    timeout: float | None,
) -> Outcome:
    if many.asked:
        return run_many(context, spec.kind, many, fields, key=key, wait=wait, timeout=timeout)
    at = Place.parse(many.place)
    request = request_of(spec, bucket=at.bucket, key=at.key, **fields)
    job_id = choose_id(spec, idempotency_key=key)
    with sender(context, f"{spec.kind}: waiting for a worker") as way:
        known = way.known(spec, job_id, request)
        job = way.client.job(job_id, spec) if known else way.send(spec, job_id, request)
        return way.stay(job, timeout) if wait else Outcome(job_id, spec.kind)


def _everything(place: str, *, every: bool, sure: bool) -> bool:
    """Return that a whole bucket is to be deleted from, if that was said in so many words."""
    if not sure:
        raise Failure(f"this would delete all of {place.rstrip('/')!r}: add --everything, or a prefix", Status.USAGE)
    if not every or place.partition("/")[2]:
        raise Failure("--everything goes with --all BUCKET, without a prefix", Status.USAGE)
    return True


def _pairs(option: str, given: list[str]) -> dict[str, str] | None:
    pairs = {}
    for each in given:
        name, equals, value = each.partition("=")
        if not equals:
            raise Failure(f"{option} {each!r}: write NAME=VALUE", Status.USAGE, type_="UsageError")
        pairs[name] = value
    return pairs or None


def _text(path: Path) -> str:
    """Return a path that can stand in a model; one whose name is no text is staged and gets another name."""
    return str(path).encode("utf-8", "replace").decode()
