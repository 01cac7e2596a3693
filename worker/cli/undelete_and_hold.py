"""The commands `undelete`, `deleted`, `hold`, `release` and `holds`."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated

import typer

from worker import clock
from worker.artifacts.store_holds import NOT_OFFERED, hold_copies, is_held
from worker.catalogue import Artifact, Hold
from worker.cli.arguments import ArtifactArgument, ArtifactPath, refuse
from worker.cli.errors import Failure, UsageError
from worker.cli.output import AsJson, complain, print_json, print_table, say
from worker.cli.session import opened
from worker.cli.user import user_name
from worker.counted import counted
from worker.exit_status import Status

_AT_ONCE = 100
"""Deletes that are undone in one transaction."""

Reason = Annotated[
    str, typer.Option("--reason", metavar="TEXT", help="Why; it is shown to everyone who wants to delete the artifact.")
]
UndeleteReason = Annotated[
    str | None, typer.Option("--reason", metavar="TEXT", help="Why; it is recorded in the history of the artifact.")
]
UndeleteBy = Annotated[
    str | None, typer.Option("--by", metavar="NAME", help="Who undoes the delete; your user name by default.")
]
OptionalArtifact = Annotated[
    str, typer.Argument(metavar="BUCKET/KEY", help="The artifact, such as releases/app.tgz.", show_default=False)
]
By = Annotated[str | None, typer.Option("--by", metavar="NAME", help="Who sets the hold; your user name by default.")]


def undelete(
    artifact: OptionalArtifact = "",
    *,
    job: Annotated[
        str | None, typer.Option("--job", metavar="JOB", help="All artifacts that this job or batch has deleted.")
    ] = None,
    reason: UndeleteReason = None,
    by: UndeleteBy = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="With --job: list what would come back, and change nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Undo the delete of an artifact, or all deletes of a job, within the grace period.

    With --job, an artifact that was uploaded again since is named and stays, and the exit status is 1.
    `zot-artifacts deleted` lists the deletes that can be undone, and until when.
    `zot-artifacts show --proof` shows who undid one, and why.

    Examples:

        zot-artifacts undelete releases/app.tgz

        zot-artifacts undelete releases/app.tgz --reason "release 2 needs it"

        zot-artifacts undelete --job 5f0a1d0e --dry-run
    """
    if (job is None) == (not artifact):
        raise UsageError("name an artifact, or a job with --job")
    if job is not None:
        _undelete_all(job, reason, by, dry_run=dry_run, as_json=as_json)
        return
    refuse("goes with --job", {"--dry-run": dry_run})
    at = ArtifactPath.parse(artifact)
    with opened() as session:
        before = {each.key for each in session.catalogue.companions.of(at.bucket, at.key)}
        who = by or user_name()
        found = session.catalogue.deletions.undo(at.bucket, at.key, now=clock.now(), by=who, reason=reason)
        after = [each.key for each in session.catalogue.companions.of(at.bucket, at.key) if each.key not in before]
    if as_json:
        print_json(
            {
                "bucket": found.bucket,
                "key": found.key,
                "version": found.version,
                **({"companions": after} if after else {}),
            }
        )
    else:
        say(f"{found.path} version {found.version} is back{_with(at.bucket, after)}")


def _undelete_all(job: str, reason: str | None, by: str | None, *, dry_run: bool, as_json: bool) -> None:
    undone: dict[str, Artifact] = {}
    refused: list[str] = []
    with opened() as session:
        deletions, after = session.catalogue.deletions, ("", "")
        id_ = job if deletions.of_job(job, limit=1) else session.job(job).id  # a rebuilt catalogue has no jobs
        while some := deletions.of_job(id_, after, limit=_AT_ONCE):
            found, why_not = deletions.undo_all(
                some, now=clock.now(), by=by or user_name(), reason=reason, dry_run=dry_run
            )
            undone |= {each.path: each for each in found}
            refused += why_not
            after = some[-1].bucket, some[-1].key
    if not undone and not refused:
        raise Failure(f"job {id_} has no delete that can be undone: `zot-artifacts deleted` lists them")
    if as_json:
        rows = [{"bucket": each.bucket, "key": each.key, "version": each.version} for each in undone.values()]
        print_json({"job": id_, "undeleted": rows, "refused": refused, "dry_run": dry_run})
    else:
        for each in undone.values():
            say(f"{each.path} version {each.version}")
        say(f"{counted(len(undone), 'artifact')} {'would come' if dry_run else 'came'} back")
        for why in refused:
            complain(why)
    raise typer.Exit(Status.BAD if refused else Status.GOOD)


def deleted(as_json: AsJson = False) -> None:
    """List the deletes that can be undone, by whom and why.

    Example:

        zot-artifacts deleted
    """
    with opened() as session:
        found, after = [], ("", "")
        while some := session.catalogue.deletions.page(after):
            found += some
            after = some[-1].bucket, some[-1].key
    if as_json:
        print_json({"deleted": [asdict(each) for each in found]})
    else:
        rows = [
            (f"{each.bucket}/{each.key}", each.deleted_at, each.purge_after, each.by, each.reason) for each in found
        ]
        columns = ("artifact", "deleted", "purged after", "by", "reason")
        print_table(columns, rows, empty="no delete can be undone", flexible=("artifact", "reason"))


def hold(artifact: ArtifactArgument, reason: Reason, by: By = None, as_json: AsJson = False) -> None:
    """Forbid deleting or replacing an artifact until `release`.

    A store that offers a hold of its own holds its copy too.
    Such stores are S3 with Object Lock, Cloud Storage, and Azure with immutable storage for versions.

    Example:

        zot-artifacts hold releases/app.tgz --reason "case 4711"
    """
    at = ArtifactPath.parse(artifact)
    if not reason.strip():
        raise UsageError("--reason needs a text: why is the artifact held?")
    with opened() as session:
        if session.catalogue.deletions.get(at.bucket, at.key) is None:
            session.catalogue.artifact(at.bucket, at.key)  # a misspelt key would hold nothing
        who, now = by or user_name(), clock.now()
        made = session.catalogue.holds.place(at.bucket, at.key, by=who, reason=reason, now=now)
        how = "is held" if made.held_at == now else "was held already,"
        said: dict[str, str] = {}
        together = session.catalogue.holds.of_companions(made)
        for each in together:
            words = hold_copies(session.catalogue, session.stores, each, held=True)
            session.catalogue.holds.note_stores(each.bucket, each.key, words)
            said |= _by_copy(words, each, at)
        made = session.catalogue.holds.get(at.bucket, at.key) or made
    if as_json:
        print_json(asdict(made))
    else:
        say(f"{at} {how} by {made.by}{_with(at.bucket, [each.key for each in together[1:]])}: {made.reason}")
        for store, word in said.items():
            if is_held(word):
                say(f"{store}: the store holds its copy itself too")
            elif word != NOT_OFFERED:
                complain(f"{store}: the store does not hold its copy: {word}; the verify sweep tries again")


def release(artifact: ArtifactArgument, as_json: AsJson = False) -> None:
    """End the hold on an artifact.

    The exit status is 1 if the artifact has no hold.

    Example:

        zot-artifacts release releases/app.tgz
    """
    at = ArtifactPath.parse(artifact)
    with opened() as session:
        found = session.catalogue.holds.get(at.bucket, at.key)
        said: dict[str, str] = {}
        for each in session.catalogue.holds.of_companions(found) if found else ():
            said |= _by_copy(hold_copies(session.catalogue, session.stores, each, held=False), each, at)
        failed = {store: word for store, word in said.items() if word not in {"released", NOT_OFFERED}}
        if failed:
            told = "; ".join(f"{store}: {word}" for store, word in failed.items())
            raise Failure(f"{at} stays held: a store does not end its own hold: {told}", type_="HoldOfStore")
        released = session.catalogue.holds.release(at.bucket, at.key)
    if as_json:
        print_json({"bucket": at.bucket, "key": at.key, "released": released})
    else:
        say(f"{at}: {'the hold has ended' if released else 'it was not held'}")
    raise typer.Exit(Status.GOOD if released else Status.BAD)


def holds(as_json: AsJson = False) -> None:
    """List the artifacts that are held, by whom and why.

    Example:

        zot-artifacts holds
    """
    with opened() as session:
        found = session.catalogue.holds.all()
    if as_json:
        print_json({"holds": [asdict(each) for each in found]})
    else:
        rows = [
            (f"{each.bucket}/{each.key}", each.held_at, each.by, each.reason, ", ".join(_holding(each)) or None)
            for each in found
        ]
        print_table(
            ("artifact", "since", "by", "reason", "also by stores"),
            rows,
            empty="nothing is held",
            flexible=("artifact", "reason"),
        )


def _holding(of: Hold) -> list[str]:
    return [store for store, word in of.stores.items() if is_held(word)]


def _by_copy(words: Mapping[str, str], of: Hold, asked: ArtifactPath) -> dict[str, str]:
    """Return what stores said, by the name of the store; for a companion of what was asked for also by its path."""
    return {store if of.key == asked.key else f"{store}, {of.bucket}/{of.key}": word for store, word in words.items()}


def _with(bucket: str, companions: list[str]) -> str:
    paths = ", ".join(f"{bucket}/{key}" for key in companions)
    return f", with its companions {paths}" if companions else ""
