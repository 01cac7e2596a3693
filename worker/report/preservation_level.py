"""Compute the NDSA level of preservation for the report: the area integrity (file fixity) of version 2.0, 2019."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from worker.catalogue import FindingKind
from worker.counted import counted
from worker.settings import Settings
from worker.storage.config import FilesystemConfig
from worker.storage.durations_and_sizes import duration_text

_BAD = {FindingKind.CORRUPT, FindingKind.MISSING, FindingKind.SIZE_MISMATCH, FindingKind.SUSPECT}
_OUTSIDE = "the worker cannot know it"


@dataclass(frozen=True, slots=True)
class Demand:
    """What a level asks. `met` is None for what only the operator can know."""

    level: int
    asks: str
    met: bool | None
    why: str


def preservation_level(settings: Settings, document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the level that was reached, each demand with the reason, and what is missing for the next level.

    What the worker cannot know does not keep a level from being reached; it is named as such.
    """
    demands = list(_demands(settings, document))
    unmet = {each.level for each in demands if each.met is False}
    level = next((below for below in range(4) if below + 1 in unmet), 4)
    missing = [each.why for each in demands if each.level == level + 1 and each.met is False]
    return {
        "matrix": "NDSA Levels of Digital Preservation, version 2.0 (2019), integrity",
        "level": level,
        "missing": missing,
        "demands": [asdict(each) for each in demands],
    }


def _demands(settings: Settings, document: Mapping[str, Any]) -> Iterator[Demand]:
    stores, findings = document["stores"], {each["kind"]: each for each in document["findings"]}
    ingest = "each upload is hashed, and compared with the digest that came with it"
    yield Demand(1, "Verify integrity information if it came with the content", met=True, why=ingest)
    yield Demand(1, "Generate integrity information if none came with it", met=True, why="each version has a SHA-256")
    yield Demand(1, "Check all content for viruses", met=None, why=_OUTSIDE)
    moved = "each replica is hashed on its way or read back"
    yield Demand(2, "Verify integrity information when moving or copying content", met=True, why=moved)
    yield Demand(2, "Use write-blockers when working with original media", met=None, why=_OUTSIDE)
    yield Demand(2, "Keep a copy of integrity information apart from the content", *_apart(settings))
    yield Demand(3, "Verify integrity information at fixed intervals", *_in_time(settings, stores))
    logged = document["log_head"] is not None and FindingKind.LOG_CHANGED not in findings
    why = "each verdict is in a log chained by hashes" if logged else "the verification log is empty or was changed"
    yield Demand(3, "Document verification processes and outcomes", met=logged, why=why)
    yield Demand(3, "Audit integrity information on demand", met=True, why="`zot-artifacts verify` and `report`")
    yield Demand(4, "Verify integrity information in response to events", *_on_events(settings))
    yield Demand(4, "Replace or repair corrupted content", *_repaired(settings, findings))


def _apart(settings: Settings) -> tuple[bool, str]:
    server = not settings.catalogue_url.startswith("sqlite")
    away = [name for name, store in settings.stores.items() if not isinstance(store, FilesystemConfig)]
    if server or away:
        where = "in the catalogue on its server" if server else f"beside the bytes in {', '.join(away)}"
        return True, f"digests are in the catalogue and beside the bytes; apart from the content they are {where}"
    return False, "the catalogue and all stores are on this machine: add a store or a catalogue elsewhere"


def _in_time(settings: Settings, stores: Sequence[Mapping[str, Any]]) -> tuple[bool, str]:
    if not settings.sweep.verify.enabled:
        return False, "sweep.verify is off: no copy is read again"
    late = [f"{row['store']}: {row['overdue']}" for row in stores if row["overdue"]]
    if late:
        return False, f"copies were not read within their period ({', '.join(late)})"
    periods = sorted({row["period_seconds"] for row in stores})
    return True, f"each copy is read in full every {' or '.join(map(duration_text, periods))}"


def _on_events(settings: Settings) -> tuple[bool, str]:
    if not settings.sweep.reconcile.enabled:
        return False, "sweep.reconcile is off: a copy that disappears is not read before its turn"
    return True, "a suspect copy is read a second time, and one that a listing lacks is read at once"


def _repaired(settings: Settings, findings: Mapping[str, Mapping[str, Any]]) -> tuple[bool, str]:
    if not settings.sweep.repair.enabled or settings.sweep.repair.off:
        off = ", ".join(settings.sweep.repair.off) or "all stores"
        return False, f"repairs are off for {off}"
    if (lost := findings.get(FindingKind.LOST)) is not None:
        return False, f"{counted(lost['count'], 'artifact')} without a good copy"
    if FindingKind.STORE_UNTRUSTED in findings:
        return False, "the repairs of a store have stopped: `zot-artifacts stores trust`"
    bad = sum(each["count"] for kind, each in findings.items() if kind in _BAD)
    if bad:
        return False, f"{counted(bad, 'bad copy')} not repaired yet"
    return True, "a bad copy is replaced from a good one, and its bytes are kept in quarantine"
