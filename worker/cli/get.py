"""The command `get`."""

import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from worker.artifacts.directory_listing import Filters
from worker.catalogue import Artifact
from worker.cli.arguments import STREAM, ArtifactPath, Exclude, Include, local_path, refuse
from worker.cli.errors import Failure, UsageError
from worker.cli.fetch_artifact import Fetched, Part, fetch
from worker.cli.get_directory import dry_run as print_dry_run
from worker.cli.get_directory import finish, get_directory, selection_of
from worker.cli.output import AsJson, note, print_json, say
from worker.cli.progress import bar
from worker.cli.session import Session, opened
from worker.exit_status import Status
from worker.readable import size
from worker.storage.integrity.verifying_reader import OnBytes

_COPY = 1024**2


def get(
    artifact: Annotated[
        str,
        typer.Argument(
            metavar="BUCKET/KEY", help="The artifact, such as releases/app.tgz. With -r: BUCKET or BUCKET/PREFIX."
        ),
    ],
    dest: Annotated[
        str, typer.Argument(metavar="DEST", help="A file, a directory to put it into, or `-` for standard output.")
    ],
    *,
    recursive: Annotated[
        bool, typer.Option("--recursive", "-r", help="Write all artifacts below the prefix into the directory DEST.")
    ] = False,
    range_: Annotated[
        str | None,
        typer.Option(
            "--range",
            metavar="FIRST-LAST",
            help="Only these bytes, counted from 0, the last one included, such as 0-1023.",
        ),
    ] = None,
    include: Include = None,
    exclude: Exclude = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="With -r: count artifacts and bytes, and write nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write an artifact to a file or to standard output.

    The bytes are verified first: DEST becomes the whole artifact or does not change.
    Nothing is written to standard output before the last byte is verified.
    With -r each file is verified before it appears, and files that already have the right bytes are skipped.
    To continue after an interruption, run the same command again.
    A key that names a path outside DEST is reported and not written.
    A GLOB is matched as by `upload -r`: with names, or with the path below the prefix where it has a slash.

    Examples:

        zot-artifacts get releases/app.tgz .
        zot-artifacts get backups/dir.tar - | tar x
        zot-artifacts get -r releases/2026-11 ./2026-11 --exclude '*.log'
    """
    check_output(dest, as_json=as_json)
    if recursive:
        filters = Filters(tuple(include or ()), tuple(exclude or ()))
        _get_directory(artifact, dest, range_, filters, dry=dry_run, as_json=as_json)
        return
    refuse("goes with --recursive", {"--include": include, "--exclude": exclude, "--dry-run": dry_run})
    at = ArtifactPath.parse(artifact, many="--recursive")
    with opened() as session, bar("reading") as shown:
        found = session.catalogue.artifact(at.bucket, at.key)
        part = _part(range_, found) if range_ else None
        shown.start(part.length if part else found.digest.size, "reading")
        if dest == STREAM:
            fetched = _fetch_to_stdout(session, found, shown.advance, part)
        else:
            fetched = fetch(session, found, file_at(dest, found.key).absolute(), shown.advance, part)
    _print(fetched, part, as_json=as_json)


def _get_directory(source: str, dest: str, range_: str | None, filters: Filters, *, dry: bool, as_json: bool) -> None:
    if range_ or dest == STREAM:
        what = "--range" if range_ else "DEST `-`"
        raise UsageError(f"{what} is for one artifact: leave it out with --recursive")
    with opened() as session, bar("reading") as shown:
        chosen = selection_of(session, source, filters)
        if dry:
            print_dry_run(chosen, as_json=as_json)
            return
        done = get_directory(session, chosen, dest, shown)
    raise typer.Exit(finish(done, as_json=as_json))


def check_output(dest: str, *, as_json: bool) -> None:
    """Raise Failure if DEST is empty, or if bytes and JSON would both go to standard output."""
    if not dest:
        raise UsageError("DEST is empty: name a file, or a directory such as `.`")
    if dest == STREAM and as_json:
        raise UsageError("--json and DEST `-` would both write to standard output: leave one out")


def file_at(dest: str, key: str) -> Path:
    """Return the file that DEST names for an artifact: one with the last name of its key if DEST is a directory."""
    path = local_path(dest)
    if dest.endswith("/") and not path.is_dir():
        raise UsageError(f"{dest} is no directory: make it first, or name a file")
    return path / key.rpartition("/")[2] if path.is_dir() else path


def _part(text: str, artifact: Artifact) -> Part:
    found = re.fullmatch(r"([0-9]{1,19})-([0-9]{0,19})", text)
    size_, first = artifact.digest.size, int(found[1]) if found else 0
    last = min(int(found[2]), size_ - 1) if found and found[2] else size_ - 1
    if not found or first > last:
        raise Failure(
            f"--range {text}: write it FIRST-LAST, such as 0-1023, or FIRST-; {artifact.path} has {size_} bytes",
            Status.USAGE,
            type_="BadRange",
        )
    return Part(first, last - first + 1)


def _fetch_to_stdout(session: Session, artifact: Artifact, on_bytes: OnBytes, part: Part | None) -> Fetched:
    """Write verified bytes to stdout. They wait in a file until the last one is verified."""
    with tempfile.TemporaryDirectory(dir=session.settings.spool_dir, prefix="get-") as directory:
        fetched = fetch(session, artifact, Path(directory) / "object", on_bytes, part)
        with (Path(directory) / "object").open("rb") as file:
            shutil.copyfileobj(file, sys.stdout.buffer, _COPY)
        sys.stdout.buffer.flush()
    return Fetched(artifact, fetched.store, None)


def _print(fetched: Fetched, part: Part | None, *, as_json: bool) -> None:
    artifact = fetched.artifact
    document: dict[str, object] = {"bucket": artifact.bucket, "key": artifact.key, "version": artifact.version}
    if part:
        document |= {"offset": part.offset, "length": part.length}
        about = f"bytes {part.offset}-{part.offset + part.length - 1}"
    else:
        document |= {"size": artifact.digest.size, "sha256": artifact.digest.sha256}
        about = f"{size(artifact.digest.size)} sha256 {artifact.digest.sha256}"
    if as_json:
        print_json({**document, "store": fetched.store, "path": str(fetched.path)})
    elif fetched.path is None:
        note(f"{artifact.path} {about} from {fetched.store}")
    else:
        say(f"{fetched.path} {about} from {fetched.store}" + (", verified" if part else ""))
