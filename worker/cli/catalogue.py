"""The commands `catalogue export` and `catalogue import`."""

import contextlib
import gzip
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, BinaryIO, cast

import typer

from worker.catalogue import Catalogue, ExportSummary, load
from worker.catalogue.load import Lines
from worker.cli.local_file import complete_file
from worker.cli.output import AsJson, note, print_json, say
from worker.settings import load_settings

app = typer.Typer(
    help="Export, import, back up, restore or rebuild the catalogue.", add_completion=False, no_args_is_help=True
)

_STANDARD = "-"
_GZIP = b"\x1f\x8b"


@app.callback()
def _catalogue() -> None:
    """Move the catalogue to another database, keep it, and get it back."""


@app.command("export")
def export_(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="The file to write, compressed if it ends in .gz; - is stdout.")
    ],
    as_json: AsJson = False,
) -> None:
    """Write the whole catalogue as JSON lines: one state of it, also while workers run.

    The last line has the SHA-256 of all lines before it.

    Examples:

        zot-artifacts catalogue export catalogue.jsonl.gz

        zot-artifacts catalogue export - | zstd > catalogue.jsonl.zst
    """
    settings = load_settings()
    settings.prepare()
    catalogue = Catalogue(settings.catalogue_url, create=False)
    try:
        if file == _STANDARD:
            summary = catalogue.export(sys.stdout.buffer)
            sys.stdout.buffer.flush()
        else:
            with complete_file(Path(file), settings.spool_dir) as raw, compressed(raw, file) as sink:
                summary = catalogue.export(sink)
    finally:
        catalogue.close()
    if file == _STANDARD:
        note(_told(summary))
    elif as_json:
        print_json(document_of(summary) | {"path": file})
    else:
        say(f"{file}: {_told(summary)}")


@app.command("import")
def import_(
    file: Annotated[str, typer.Argument(metavar="FILE", help="The export, compressed or not; - is stdin.")],
    as_json: AsJson = False,
) -> None:
    """Load an export into a new or empty catalogue: all of it, or nothing if the file is cut or damaged.

    Stop the workers first.
    ZOT_CATALOGUE names the database; with `export` before it, this moves a catalogue from SQLite to PostgreSQL or back.

    Example:

        ZOT_CATALOGUE=postgresql+psycopg://zot@db/zot zot-artifacts catalogue import catalogue.jsonl.gz
    """
    settings = load_settings()
    settings.prepare()
    with _opened(file) as raw:
        summary = load(settings.catalogue_url, uncompressed(raw))
    if as_json:
        print_json(document_of(summary))
    else:
        say(f"loaded {_told(summary)}")


@contextlib.contextmanager
def compressed(file: BinaryIO, name: str) -> Iterator[BinaryIO]:
    """Yield the file, or what compresses into it if the name ends in .gz."""
    if not name.endswith(".gz"):
        yield file
        return
    with gzip.GzipFile(filename="", fileobj=file, mode="wb", compresslevel=6, mtime=0) as sink:
        yield cast("BinaryIO", sink)


def uncompressed(file: io.BufferedReader) -> Lines:
    """Return the lines of a file that may be compressed."""
    return gzip.GzipFile(fileobj=file) if file.peek(2)[:2] == _GZIP else file


def document_of(summary: ExportSummary) -> dict[str, object]:
    """Return a summary as a JSON document."""
    head = summary.log_head
    return {
        "catalogue": summary.identity,
        "exported_at": summary.exported_at,
        "sha256": summary.sha256,
        "rows": dict(summary.rows),
        "log_head": {"id": head.id, "hash": head.hash, "at": head.at} if head else None,
    }


def _told(summary: ExportSummary) -> str:
    rows = summary.rows
    counts = ", ".join(f"{rows.get(name, 0)} {name}" for name in ("artifacts", "copies", "verifications", "jobs"))
    return f"{summary.total} rows ({counts}) of the catalogue {summary.identity}, sha256 {summary.sha256}"


@contextlib.contextmanager
def _opened(file: str) -> Iterator[io.BufferedReader]:
    if file == _STANDARD:
        yield cast("io.BufferedReader", sys.stdin.buffer)
        return
    with Path(file).open("rb") as raw:
        yield raw
