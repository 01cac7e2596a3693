"""The command `show`."""

from dataclasses import asdict
from typing import Any

from worker.catalogue import Copy, EvidenceCheck
from worker.cli.arguments import ArtifactArgument, ArtifactPath
from worker.cli.ls import brief
from worker.cli.output import AsJson, print_json, print_table, say, size
from worker.cli.session import opened


def show(artifact: ArtifactArgument, as_json: AsJson = False) -> None:
    """Show one artifact and the state of each copy.

    Each copy has its state, its last verification and its last attempt.

    Example:

        zot-artifacts show releases/app.tgz
    """
    at = ArtifactPath.parse(artifact)
    with opened(existing=True) as session:
        found = session.artifact(at.bucket, at.key)
        copies = [copy for copy in session.catalogue.artifacts.copies(found).values() if copy.state.present]
        configured = set(session.settings.stores)
        checks = session.catalogue.evidence_checks.of([copy.id for copy in copies])
        held = session.catalogue.holds.get(at.bucket, at.key)
    if as_json:
        hold = asdict(held) if held else None
        print_json({**brief(found), "hold": hold, "copies": [_copy(copy, checks.get(copy.id)) for copy in copies]})
        return
    say(f"{found.path} version {found.version} {size(found.digest.size)}")
    say(f"sha256 {found.digest.sha256}")
    if held is not None:
        say(f"held by {held.by} since {held.held_at:%Y-%m-%d}: {held.reason}")
    for name, value in found.metadata.items():
        say(f"{name}={value}")
    rows = [
        (
            copy.store,
            copy.state.value if copy.store in configured else f"{copy.state.value}, store not configured",
            copy.last_verified_at,
            copy.last_attempt_at,
            f"{check.outcome} {check.checked_at:%Y-%m-%d}" if (check := checks.get(copy.id)) else None,
        )
        for copy in copies
    ]
    columns = ("store", "state", "last verified", "last attempt", "evidence")
    print_table(columns, rows, empty="no copies", flexible=("state",))


def _copy(copy: Copy, check: EvidenceCheck | None) -> dict[str, Any]:
    return {
        "store": copy.store,
        "state": copy.state.value,
        "last_verified_at": copy.last_verified_at,
        "last_attempt_at": copy.last_attempt_at,
        "evidence": check
        and {"outcome": check.outcome, "by": check.source, "compared": check.compared, "checked_at": check.checked_at},
    }
