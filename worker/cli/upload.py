"""The command `upload`."""

import sys
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from worker.artifacts.directory_listing import DirectoryListing, Filters
from worker.cli.arguments import (
    STREAM,
    ArtifactPath,
    Exclude,
    IdempotencyKey,
    Include,
    Notify,
    NoWait,
    Stores,
    Timeout,
    refuse,
)
from worker.cli.errors import UsageError
from worker.cli.job_outcome import Outcome, finish
from worker.cli.output import AsJson
from worker.cli.send_and_wait import Sender, WaitOptions, request_of, sender
from worker.cli.session import opened
from worker.cli.stage_file import Staged, check_file, stage, stage_stream, within_roots
from worker.cli.upload_directory import count_refused, listing_of, not_sent, report, upload_directory
from worker.cli.upload_directory import dry_run as print_dry_run
from worker.storage.keys import check_key
from zot_artifact_client.contract import PROPERTIES, UPLOAD, UploadRequest
from zot_artifact_client.job_ids import choose_id


class SymlinkPolicy(StrEnum):
    """What a recursive upload does with symbolic links."""

    skip = "skip"
    follow = "follow"
    error = "error"


Source = Annotated[
    str,
    typer.Argument(metavar="SOURCE", help="A file, `-` for standard input, or a URL of a host in sources.hosts."),
]
Target = Annotated[
    str,
    typer.Argument(
        metavar="BUCKET/KEY",
        help="The artifact, such as releases/app.tgz. With --recursive: BUCKET or BUCKET/PREFIX.",
    ),
]
Recursive = Annotated[
    bool, typer.Option("--recursive", "-r", help="SOURCE is a directory: upload the files in and below it.")
]
Symlinks = Annotated[
    SymlinkPolicy, typer.Option(metavar="skip|follow|error", help="With -r: what to do with symbolic links.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="With -r: count files and bytes, and upload nothing.")]
Sha256 = Annotated[str | None, typer.Option(metavar="HEX", help="Reject the upload if the bytes have another SHA-256.")]
Metadata = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=VALUE", help="Record this metadata with the artifact. Can be repeated."),
]
StorageClass = Annotated[
    list[str] | None,
    typer.Option(
        metavar="STORE=CLASS", help="Storage class or access tier in a store, such as s3=GLACIER_IR. Can be repeated."
    ),
]
Property = Annotated[
    list[str] | None,
    typer.Option(
        "--property",
        metavar="NAME=VALUE",
        help=f"Keep a header beside the bytes: {', '.join(PROPERTIES)}. Can be repeated.",
    ),
]
Tag = Annotated[
    list[str] | None,
    typer.Option(
        "--tag", metavar="NAME=VALUE", help="Give the object this tag, in stores that have tags. Can be repeated."
    ),
]
CompanionOf = Annotated[
    str | None,
    typer.Option(
        metavar="KEY",
        help="Upload it as a companion, such as a signature or SBOM, of this artifact of the same bucket.",
    ),
]


def upload(
    source: Source,
    artifact: Target,
    *,
    recursive: Recursive = False,
    include: Include = None,
    exclude: Exclude = None,
    symlinks: Symlinks = SymlinkPolicy.skip,
    dry_run: DryRun = False,
    sha256: Sha256 = None,
    store: Stores = None,
    metadata: Metadata = None,
    storage_class: StorageClass = None,
    property_: Property = None,
    tag: Tag = None,
    companion_of: CompanionOf = None,
    idempotency_key: IdempotencyKey = None,
    notify: Notify = None,
    no_wait: NoWait = False,
    timeout: Timeout = None,
    as_json: AsJson = False,
) -> None:
    """Upload a file, standard input or a URL as an artifact.

    If the program that writes standard input dies, the input looks complete: give --sha256 to detect that.
    Without --store the placement settings choose the stores.
    With it the artifact stays in these stores, unless a placement rule wants it elsewhere too.

    With -r each file of a directory is uploaded as an artifact, in one batch.
    To continue after an interruption, run the same command again: files that a store has are `already there`.
    --metadata, --property, --tag and --storage-class apply to every file.
    Each store that --storage-class names must be named with --store too.
    A GLOB without a slash matches names; one with a slash matches paths in the directory.
    `**` in a GLOB matches any number of directories.

    Examples:

        zot-artifacts upload app.tgz releases/app.tgz
        tar c dir | zot-artifacts upload - backups/dir.tar --store dr
        zot-artifacts upload https://builds.example/app.tgz releases/app.tgz --sha256 9f86d0…
        zot-artifacts upload -r build releases/2026-11 --exclude '*.tmp' --tag team=core
    """
    waiting = WaitOptions(not no_wait, timeout, idempotency_key, tuple(notify or ()))
    beside = {
        "metadata": _pairs("--metadata", metadata or []),
        "storage_classes": _pairs("--storage-class", storage_class or []),
        "tags": _pairs("--tag", tag or []),
        **_properties(property_ or []),
    }
    if recursive:
        refuse("is for one file: leave it out with --recursive", {"--sha256": sha256, "--companion-of": companion_of})
        if storage_class and not store:
            raise UsageError("with --recursive, name the stores of --storage-class with --store too")
        listing = listing_of(source, artifact, Filters(tuple(include or ()), tuple(exclude or ()), symlinks.value))
        _upload_directory(listing, store, beside, waiting, dry=dry_run, as_json=as_json)
        return
    link_policy = symlinks if symlinks is not SymlinkPolicy.skip else None
    several = {"--include": include, "--exclude": exclude, "--symlinks": link_policy, "--dry-run": dry_run}
    refuse("goes with --recursive", several)
    fields = {**beside, "sha256": sha256, "companion_of": companion_of}
    _upload_file(source, artifact, store, fields, waiting, as_json=as_json)


def _upload_file(
    source: str,
    artifact: str,
    store: list[str] | None,
    fields: Mapping[str, object],
    waiting: WaitOptions,
    *,
    as_json: bool,
) -> None:
    at = ArtifactPath.parse(artifact)
    check_key(at.bucket, at.key)
    with opened(sends=True) as session:
        path = None if source == STREAM or "://" in source else check_file(source)
        request = request_of(
            UPLOAD, bucket=at.bucket, key=at.key, source=_source(source, path), stores=session.store_names(store),
            notify=waiting.notify or None, **fields,
        )  # fmt: skip
        job_id = choose_id(UPLOAD, idempotency_key=waiting.key)
        with sender(session, "uploading", waiting) as way:
            if source == STREAM:
                outcome = _upload_stdin(way, job_id, request)
            else:
                outcome = upload_one(way, job_id, request, path)
    finish(outcome, waited=waiting.wait, as_json=as_json)


def _upload_directory(
    listing: DirectoryListing,
    store: list[str] | None,
    beside: Mapping[str, object],
    waiting: WaitOptions,
    *,
    dry: bool,
    as_json: bool,
) -> None:
    if dry:
        raise typer.Exit(print_dry_run(listing, as_json=as_json))
    try:
        with opened(sends=True) as session:
            outcome = upload_directory(session, listing, session.store_names(store), beside, waiting)
    finally:
        report(listing)
    try:
        finish(outcome, waited=waiting.wait, as_json=as_json, more={"not_sent": not_sent(listing)})
    except typer.Exit as end:
        left_out = count_refused(listing)
        raise typer.Exit(end.exit_code or left_out) from None


def upload_one(way: Sender, job_id: str, request: UploadRequest, path: Path | None) -> Outcome:
    """Send an upload; a file outside sources.roots is copied into the staging directory first.

    Raises:
        Failure: the file cannot be staged, or has another SHA-256 than the given one; nothing was sent.
        BrokerUnavailable: nothing was sent, and nothing is left in the staging directory.
    """
    settings = way.session.settings
    if path is None or within_roots(path, settings):
        job = way.send_once(UPLOAD, job_id, request)
    else:
        way.shown.start(path.stat().st_size, "staging")
        staged = stage(path, settings, job_id, request.sha256, way.shown.advance)
        job = way.send_staged(UPLOAD, job_id, _staged_request(request, staged), staged)
    return way.wait(job)


def _upload_stdin(way: Sender, job_id: str, request: UploadRequest) -> Outcome:
    if sys.stdin.isatty():
        raise UsageError("standard input is a terminal: pipe the bytes into `zot-artifacts upload -`")
    way.shown.start(None, "reading standard input")
    staged = stage_stream(sys.stdin.buffer, way.session.settings, job_id, request.sha256, way.shown.advance)
    job = way.send_staged(UPLOAD, job_id, _staged_request(request, staged), staged)
    return way.wait(job)


def _staged_request(request: UploadRequest, staged: Staged) -> UploadRequest:
    return request.model_copy(update={"source": str(staged.path), "sha256": staged.sha256, "staged": True})


def _pairs(option: str, given: list[str]) -> dict[str, str] | None:
    pairs = {}
    for each in given:
        name, equals, value = each.partition("=")
        if not equals:
            raise UsageError(f"{option} {each!r}: write NAME=VALUE")
        if name in pairs:
            raise UsageError(f"{option}: {name!r} is given twice")
        pairs[name] = value
    return pairs or None


def _properties(given: list[str]) -> dict[str, str]:
    pairs = _pairs("--property", given) or {}
    for name in pairs:
        if name not in PROPERTIES:
            known = ", ".join(PROPERTIES)
            raise UsageError(f"--property {name!r}: there are {known}")
    return pairs


def _source(source: str, path: Path | None) -> str:
    """Return the source as a request can hold it; what is staged replaces standard input and a name that is no text."""
    if path is not None:
        return str(path).encode("utf-8", "replace").decode()
    return "/dev/stdin" if source == STREAM else source
