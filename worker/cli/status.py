"""The command `status`."""

import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

import typer

from worker import clock
from worker.catalogue import BAD, CopyState, OpenFinding, Pause, Scope
from worker.cli.errors import Status
from worker.cli.output import AsJson, age, print_json, print_table, say, size
from worker.cli.pause import describe_pause
from worker.cli.service_checks import Check, broker_checks, open_breakers
from worker.cli.session import Session, opened
from worker.cli.stores import unconfigured
from worker.storage.config import FilesystemConfig

_RECENT = timedelta(hours=6)
"""The reads of this time give the rate of the forecast."""
_NAMED = 5
_MOST_LOST = 1000
"""Lost artifacts that are counted; more are told as `1000 or more`."""
_LEAST_FREE = 1024**3
_KINDS = ("lost", "store untrusted", *(state.value for state in BAD), "unreadable", "overdue", "not configured")


@dataclass(frozen=True, slots=True)
class Open:
    """The open findings of one kind in one store, the first few by name."""

    kind: str
    store: str
    count: int
    examples: tuple[OpenFinding, ...] = ()
    since: datetime | None = None
    detail: str | None = None


def status(as_json: AsJson = False) -> None:
    """Show what is open: findings, repairs, dead letters, and how far the copies are read.

    The exit status is 0 if nothing is open, and 1 if something is: a finding, a dead letter, an open circuit breaker,
    a queue without a worker, a beat that does not tick, or less than 1 GiB free. It is 3 if that cannot be told.
    A pause is shown and is not open: an operator began it.

    Examples:

        zot-artifacts status

        zot-artifacts status --json
    """
    with opened(existing=True) as session:
        document = _document(session)
    if as_json:
        print_json(document)
    else:
        _print(document)
    raise typer.Exit(document["status"])


def _document(session: Session) -> dict[str, Any]:
    now = clock.now()
    with ThreadPoolExecutor(max_workers=2) as pool:  # workers have seconds to answer
        asked = pool.submit(lambda: list(broker_checks(session.settings)))
        breakers = pool.submit(open_breakers, session.settings)
        pauses = session.catalogue.pauses.all()
        counts = session.catalogue.artifacts.count_by_state()
        stores = [_store(session, name, counts.get(name, {}), pauses, now) for name in session.settings.stores]
        repairs, dead = session.catalogue.open_findings.jobs()
        findings = sorted(_findings(session, stores, counts, now), key=lambda each: _KINDS.index(each.kind))
        checks = [*asked.result(), *(_breaker(*each) for each in breakers.result().items()), *_disks(session)]
    return {
        "status": _status(findings, dead, checks),
        "at": now,
        "stores": stores,
        "findings": [asdict(each) for each in findings],
        "repairs": repairs,
        "dead_letters": dead,
        "paused": [{"scope": each.scope, "name": each.name, **_paused(each)} for each in pauses],
        "checks": [asdict(check) for check in checks],
    }


def _store(
    session: Session, name: str, states: Mapping[str, int], pauses: list[Pause], now: datetime
) -> dict[str, Any]:
    period = session.settings.sweep.verify.period_of(name)
    coverage = session.catalogue.open_findings.coverage(name, period=period, recent=_RECENT, now=now)
    present = sum(count for state, count in states.items() if CopyState(state).present)
    pause = next((each for each in pauses if (each.scope, each.name) == (Scope.STORE, name)), None)
    left = max(present - coverage.read, 0)
    return {
        "store": name,
        "copies": present,
        "states": dict(states),
        "period_seconds": period.total_seconds(),
        "read_within_period": coverage.read,
        "oldest_read_at": coverage.oldest_read_at,
        "never_read": coverage.never,
        "unreadable": coverage.unreadable,
        "overdue": session.catalogue.sweep_claims.overdue(name, period=period, now=now),
        "forecast_seconds": left * _RECENT.total_seconds() / coverage.recent if coverage.recent else None,
        "paused": None if pause is None else _paused(pause),
    }


def _findings(
    session: Session, stores: list[dict[str, Any]], counts: Mapping[str, Mapping[str, int]], now: datetime
) -> Iterator[Open]:
    known = session.catalogue.open_findings
    for row in stores:
        name = row["store"]
        for state in BAD:
            if count := row["states"].get(state, 0):
                yield Open(state.value, name, count, tuple(known.bad(name, state, limit=_NAMED)))
        if row["unreadable"]:
            yield Open("unreadable", name, row["unreadable"], tuple(known.unreadable(name, limit=_NAMED)))
        if row["overdue"]:
            period = timedelta(seconds=row["period_seconds"])
            some = known.overdue(name, period=period, now=now, limit=_NAMED)
            yield Open("overdue", name, row["overdue"], tuple(some))
    for stop in session.catalogue.repairs.untrusted().values():
        detail = f"{stop.reason}; its repairs stopped: `zot-artifacts stores trust {stop.store}`"
        yield Open("store untrusted", stop.store, 1, since=stop.since, detail=detail)
    for name, states in unconfigured(session).items():
        yield Open("not configured", name, sum(states.values()))
    lost = known.lost(list(counts), limit=_MOST_LOST)
    for name in dict.fromkeys(each.store for each in lost):
        there = [each for each in lost if each.store == name]
        yield Open("lost", name, len(there), tuple(there[:_NAMED]))


def _breaker(name: str, seconds: float) -> Check:
    detail = f"its circuit breaker is open for {seconds:.0f} s more: workers do not use the store"
    return Check(f"store {name}", "bad", detail)


def _disks(session: Session) -> Iterator[Check]:
    for name, config in session.settings.stores.items():
        if not isinstance(config, FilesystemConfig):
            continue
        try:
            free = shutil.disk_usage(config.root).free
        except OSError as error:
            yield Check(f"disk {name}", "unknown", f"{config.root}: {error.strerror}", "bring the disk back")
            continue
        yield Check(f"disk {name}", "good" if free >= _LEAST_FREE else "bad", f"{size(free)} free")


def _status(findings: list[Open], dead: int, checks: list[Check]) -> Status:
    outcomes = {check.outcome for check in checks}
    if findings or dead or "bad" in outcomes:
        return Status.BAD
    return Status.UNKNOWN if "unknown" in outcomes else Status.GOOD


def _paused(pause: Pause) -> dict[str, Any]:
    return {"since": pause.since, "reason": pause.reason}


# For people


def _print(document: Mapping[str, Any]) -> None:
    now = document["at"]
    columns = ("store", "copies", "in period", "oldest", "never read", "overdue", "all read in")
    print_table(columns, [_cells(row, now) for row in document["stores"]], empty="no stores", flexible=("store",))
    if document["findings"]:
        say("")
        rows = [row for each in document["findings"] for row in _rows(each, now)]
        print_table(("finding", "store", "since", "artifact"), rows, empty="", flexible=("artifact", "store"))
    say("")
    say(f"findings: {_sum(document['findings'])}")
    say(f"repairs and replications under way: {document['repairs']}")
    dead = document["dead_letters"]
    say(f"dead letters: {dead}; `zot-artifacts jobs --dead` lists them" if dead else "dead letters: 0")
    for each in document["paused"]:
        say(f"{each['scope']} {each['name']}: paused {describe_pause(each['since'], each['reason'])}")
    for check in document["checks"]:
        line = f"{check['name']}: {check['outcome']}, {check['detail']}"
        say(f"{line}; {check['way_out']}" if check["way_out"] and check["outcome"] != "good" else line)


def _cells(row: Mapping[str, Any], now: datetime) -> tuple[object, ...]:
    share = f"{100 * row['read_within_period'] // row['copies']} %" if row["copies"] else None
    oldest = row["oldest_read_at"] and age(row["oldest_read_at"], now)
    forecast = row["forecast_seconds"]
    ahead = None if forecast is None else age(now, now + timedelta(seconds=min(forecast, 10**10)))
    return row["store"], row["copies"], share, oldest, row["never_read"], row["overdue"], ahead


def _rows(found: Mapping[str, Any], now: datetime) -> Iterator[tuple[object, ...]]:
    for each in found["examples"]:
        yield (
            found["kind"],
            found["store"],
            each["since"] and age(each["since"], now),
            f"{each['bucket']}/{each['key']}",
        )
    if found["detail"]:
        yield found["kind"], found["store"], age(found["since"], now), found["detail"]
    elif more := found["count"] - len(found["examples"]):
        yield found["kind"], found["store"], None, f"{more} {'more' if found['examples'] else 'copies'}"


def _sum(findings: list[Mapping[str, Any]]) -> str:
    counts: dict[str, int] = {}
    for each in findings:
        counts[each["kind"]] = counts.get(each["kind"], 0) + each["count"]
    told = [
        f"{count}{' or more' if kind == 'lost' and count >= _MOST_LOST else ''} {kind}"
        for kind, count in counts.items()
    ]
    return ", ".join(told) or "none is open"
