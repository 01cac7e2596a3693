"""The command `export`."""

import hashlib
import sys
from collections.abc import Iterable
from datetime import UTC
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from worker import clock
from worker.artifacts.premis import premis
from worker.catalogue import Artifact
from worker.cli.arguments import ArtifactPath, new_directory
from worker.cli.atomic_file import complete_file
from worker.cli.errors import Failure, UsageError
from worker.cli.fetch_artifact import fetch
from worker.cli.get_directory import Refused, Target
from worker.cli.output import AsJson, print_json, say
from worker.cli.progress import bar
from worker.cli.session import Session, opened
from worker.counted import counted
from worker.readable import size

_DATA, _PREMIS = "data", "metadata/premis.xml"


def export(
    artifacts: Annotated[
        list[str], typer.Argument(metavar="BUCKET/KEY...", help="The artifacts, such as releases/app.tgz.")
    ],
    as_premis: Annotated[
        bool, typer.Option("--premis", help="Print a PREMIS 3 document: digest, copies and the latest verdicts.")
    ] = False,
    bagit: Annotated[
        Path | None,
        typer.Option("--bagit", parser=new_directory, metavar="DIR", help="Write a BagIt bag into a new directory."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Export artifacts, with their evidence, for a preservation system.

    Give one of --premis and --bagit.
    A bag (RFC 8493) has the bytes, each verified before it is written, their SHA-256 and the PREMIS document.
    `bagit.txt` is written last, so a killed export leaves no valid bag.

    Examples:

        zot-artifacts export --premis releases/app.tgz > premis.xml
        zot-artifacts export --bagit ./bag releases/app.tgz releases/app.tgz.sig
    """
    if as_premis == (bagit is not None):
        raise UsageError("give either --premis or --bagit DIR")
    paths = [ArtifactPath.parse(each) for each in dict.fromkeys(artifacts)]
    with opened() as session:
        found = [session.catalogue.artifact(at.bucket, at.key) for at in paths]
        if bagit is None:
            sys.stdout.buffer.write(premis(found, session.catalogue))
            sys.stdout.buffer.flush()
            return
        _write_bag(session, found, bagit.absolute())
    total = sum(artifact.digest.size for artifact in found)
    if as_json:
        print_json({"bag": str(bagit), "artifacts": len(found), "bytes": total})
    else:
        say(f"{bagit}: {counted(len(found), 'artifact')}, {size(total)}, verified")


def _write_bag(session: Session, artifacts: list[Artifact], directory: Path) -> None:
    try:
        (directory / _DATA).mkdir(parents=True)
        (directory / _PREMIS).parent.mkdir()
    except OSError as error:
        raise Failure(f"--bagit {directory}: {error.strerror}: name a new directory", type_="CannotWrite") from error
    target, lines = Target((directory / _DATA).resolve()), []
    with bar("reading") as shown:
        shown.start(
            sum(artifact.digest.size for artifact in artifacts), f"reading {counted(len(artifacts), 'artifact')}"
        )
        for artifact in artifacts:
            try:
                path = target.path_of(artifact.path)
                fetch(session, artifact, path, shown.advance)
                target.check(path, artifact.path)
            except Refused as error:
                raise Failure(f"{artifact.path}: {error}; leave it out", type_="CannotWrite") from None
            lines.append(f"{artifact.digest.sha256}  {_DATA}/{_encoded(artifact.path)}")
    total = sum(artifact.digest.size for artifact in artifacts)
    info = {
        "Bag-Software-Agent": f"zot-artifacts {version('zot-artifact-worker')}",
        "Bagging-Date": f"{clock.now().astimezone(UTC):%Y-%m-%d}",
        "Payload-Oxum": f"{total}.{len(artifacts)}",
    }
    files = {
        "bag-info.txt": _text(f"{name}: {value}" for name, value in info.items()),
        "manifest-sha256.txt": _text(lines),
        _PREMIS: premis(artifacts, session.catalogue),
        "bagit.txt": _text(["BagIt-Version: 1.0", "Tag-File-Character-Encoding: UTF-8"]),
    }
    tags = _text(f"{hashlib.sha256(content).hexdigest()}  {name}" for name, content in files.items())
    last = files.pop("bagit.txt")
    for name, content in {**files, "tagmanifest-sha256.txt": tags, "bagit.txt": last}.items():
        with complete_file(directory / name, session.settings.spool_dir) as file:
            file.write(content)


def _encoded(path: str) -> str:
    """Return a path as a manifest of a bag has it: what would end its line is percent-encoded."""
    return path.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _text(lines: Iterable[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()
