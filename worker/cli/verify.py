"""The command `verify`."""

from typing import Annotated, Any

import typer

from worker.catalogue import FindingKind
from worker.cli.arguments import (
    All,
    ArtifactsArgument,
    IdempotencyKey,
    InFlight,
    KeysFrom,
    Notify,
    NoWait,
    Stores,
    Timeout,
)
from worker.cli.errors import UsageError
from worker.cli.job_outcome import finish
from worker.cli.output import AsJson, complain
from worker.cli.replicate_verify_delete import Selection, run_verb
from worker.cli.send_and_wait import WaitOptions
from worker.cli.session import Session, opened
from worker.counted import counted
from zot_artifact_client.contract import EVIDENCE, VERIFY, TaskSpec

By = Annotated[
    str,
    typer.Option(
        "--by", metavar="read|provider", help="`read` reads all bytes, `provider` only asks the stores about them."
    ),
]


def verify(
    artifact: ArtifactsArgument = "",
    *,
    store: Stores = None,
    all_below: All = False,
    keys_from: KeysFrom = None,
    by: By = "read",
    in_flight: InFlight = None,
    idempotency_key: IdempotencyKey = None,
    notify: Notify = None,
    no_wait: NoWait = False,
    timeout: Timeout = None,
    as_json: AsJson = False,
) -> None:
    """Read every copy in full and compare its digest.

    The SHA-256 of all bytes is compared with the one recorded at the upload.
    The exit status is 1 if a copy is corrupt, missing or of another size, and 3 if a copy could not be read.
    A copy with right bytes and a missing or wrong SHA-256 beside them is verified, and named on stderr.
    With --all and --keys-from, stderr names the stores that have such copies.

    With `--by provider` no byte is read.
    What the stores say (size, version tag, digest, checksums) is compared with what was recorded at the write.
    This is no verification: each copy stays due for its next full read.
    A copy that differs is read in full by a further job.

    Examples:

        zot-artifacts verify releases/app.tgz
        zot-artifacts verify releases --all --store dr
        zot-artifacts verify --by provider releases/app.tgz
    """
    if by not in {"read", "provider"}:
        raise UsageError(f"--by {by}: write `read` or `provider`")
    waiting = WaitOptions(not no_wait, timeout, idempotency_key, tuple(notify or ()))
    with opened() as session:
        fields = {"stores": session.store_names(store)}
        selection = Selection(artifact, all_below, keys_from, in_flight)
        if by == "provider" and selection.many:
            raise UsageError("for many artifacts: `zot-artifacts sweep evidence --prefix BUCKET/PREFIX`")
        spec: TaskSpec[Any, Any] = EVIDENCE if by == "provider" else VERIFY
        outcome = run_verb(session, spec, selection, fields, waiting)
        if selection.many and outcome.ended:
            _tell_wrong_metadata(session)
    finish(outcome, waited=waiting.wait, as_json=as_json)


def _tell_wrong_metadata(session: Session) -> None:
    """Say in which stores a digest beside right bytes is wrong: a batch counts such a copy as verified."""
    for each in session.catalogue.findings.counts():
        if each.kind == FindingKind.METADATA:
            there = f"{counted(each.count, 'copy')} with right bytes and a wrong or lost SHA-256 beside them"
            listed = f"`zot-artifacts findings --kind metadata --store {each.store}`"
            complain(f"{each.store}: {there}: {listed}; `zot-artifacts sweep repair` rewrites it")
