"""The command `ls`."""

from collections.abc import Iterator
from typing import Annotated

import typer

from worker.catalogue import Artifact
from worker.cli.errors import suggestion
from worker.cli.output import AsJson, print_json, print_table
from worker.cli.session import Session, opened
from worker.readable import size
from worker.storage.keys import check_bucket, check_key_prefix

_PAGE = 1000


def ls(
    prefix: Annotated[
        str, typer.Argument(metavar="BUCKET/PREFIX", help="List only this bucket or prefix.", show_default=False)
    ] = "",
    as_json: AsJson = False,
) -> None:
    """List artifacts.

    Each line has the key, the size, the version, the SHA-256 and the time of the upload.

    Examples:

        zot-artifacts ls
        zot-artifacts ls releases/2026/
    """
    bucket, _, start = prefix.partition("/")
    if prefix:
        check_bucket(bucket)
        check_key_prefix(start)
    with opened() as session:
        found = _pages(session, bucket or None, start)
        if as_json:
            print_json({"artifacts": [artifact.facts for artifact in found]})
            return
        rows = [(a.path, size(a.digest.size), a.version, a.digest.sha256[:16], a.created_at) for a in found]
        known = session.catalogue.artifacts.buckets() if prefix and not rows else [bucket]
    empty = f"no artifacts below {prefix}" if prefix else "no artifacts"
    empty += "" if bucket in known else suggestion(bucket, known)
    print_table(("artifact", "size", "version", "sha256", "created"), rows, empty=empty, flexible=("artifact",))


def _pages(session: Session, bucket: str | None, prefix: str) -> Iterator[Artifact]:
    after = ("", "")
    while page := session.catalogue.artifacts.page(bucket, prefix, after, _PAGE):
        yield from page
        after = (page[-1].bucket, page[-1].key)
