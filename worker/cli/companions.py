"""The command `companions`."""

from typing import Annotated

import typer

from worker import clock
from worker.cli.arguments import ArtifactArgument, ArtifactPath
from worker.cli.errors import UsageError
from worker.cli.output import AsJson, print_json, print_table, say
from worker.cli.session import opened
from worker.cli.user import user_name
from worker.readable import size

app = typer.Typer(add_completion=False, no_args_is_help=True)
Companion = Annotated[
    str,
    typer.Argument(metavar="COMPANION", help="Bucket and key of the companion, such as releases/sboms/app.spdx.json."),
]


@app.callback()
def _companions() -> None:
    """List, add or remove what belongs to an artifact: signatures, SBOMs.

    Companions are replicated, verified, held and deleted with their artifact.
    KEY.sig, KEY.att, KEY.sbom and KEY.sigstore.json belong to KEY without `companions add`.

    Example:

        zot-artifacts companions ls releases/app.tgz
    """


@app.command("ls")
def list_companions(artifact: ArtifactArgument, as_json: AsJson = False) -> None:
    """List the companions of an artifact.

    Example:

        zot-artifacts companions ls releases/app.tgz
    """
    at = ArtifactPath.parse(artifact)
    with opened() as session:
        session.catalogue.artifact(at.bucket, at.key)
        found = session.catalogue.companions.of(at.bucket, at.key)
    if as_json:
        shown = [{"key": each.key, "size": each.digest.size, "sha256": each.digest.sha256} for each in found]
        print_json({"bucket": at.bucket, "key": at.key, "companions": shown})
        return
    rows = [(each.path, size(each.digest.size), each.digest.sha256) for each in found]
    print_table(("companion", "size", "sha256"), rows, empty=f"{at} has no companions", flexible=("companion",))


@app.command("add")
def add(artifact: ArtifactArgument, companion: Companion, as_json: AsJson = False) -> None:
    """Make an artifact a companion of another one in the same bucket.

    A hold on the artifact is then also a hold on its companion.

    Example:

        zot-artifacts companions add releases/app.tgz releases/sboms/app.spdx.json
    """
    at, other = ArtifactPath.parse(artifact), ArtifactPath.parse(companion)
    if at.bucket != other.bucket:
        raise UsageError(f"{other} is in another bucket than {at}: a companion is in the same one")
    with opened() as session:
        for each in (at, other):
            session.catalogue.artifact(each.bucket, each.key)
        session.catalogue.companions.add(at.bucket, other.key, at.key, by=user_name(), now=clock.now())
    if as_json:
        print_json({"bucket": at.bucket, "key": other.key, "companion_of": at.key})
    else:
        say(f"{other} is a companion of {at}: it is replicated, verified, held and deleted with it")


@app.command("rm")
def remove(companion: Companion, as_json: AsJson = False) -> None:
    """Remove an artifact from the companions of another one. No byte is deleted.

    It stays removed even if its key names it as a companion, as KEY.sig does.

    Example:

        zot-artifacts companions rm releases/sboms/app.spdx.json
    """
    at = ArtifactPath.parse(companion)
    with opened() as session:
        session.catalogue.artifact(at.bucket, at.key)
        was = session.catalogue.companions.owner(at.bucket, at.key)
        session.catalogue.companions.remove(at.bucket, at.key, by=user_name(), now=clock.now())
    if as_json:
        print_json({"bucket": at.bucket, "key": at.key, "was_companion_of": was})
    else:
        say(f"{at} is no companion of {at.bucket}/{was} any more" if was else f"{at} is no companion")
