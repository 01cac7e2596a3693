"""Print the document of `status` for people."""

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from operator import itemgetter
from typing import Any

from worker.catalogue import CopyState, FindingKind
from worker.cli.output import flat, print_table, say
from worker.cli.pause import describe_pause
from worker.counted import counted
from worker.readable import age, moment, size
from worker.report.status import NAMED, WAITS
from worker.schedule import sweep_name
from worker.storage.durations_and_sizes import duration_text
from zot_artifact_client.contract import SWEEP_PROBE

_FINDING_COLUMNS = ("finding", "store", "since", "artifact", "what is done")


def print_status(document: Mapping[str, Any], repair_every: timedelta) -> None:
    """Print the document; `repair_every` is the time between two repair sweeps."""
    now = document["at"]
    for each in document["findings"]:
        if each["kind"] == FindingKind.LOST:
            say(f"{each['count']} LOST: no copy of an artifact is good: `zot-artifacts findings --kind lost`")
    columns = ("store", "copies", "size", "in period", "oldest", "never read", "overdue", "all read in")
    print_table(columns, [_cells(row, now) for row in document["stores"]], empty="no stores", flexible=("store",))
    for row in document["stores"]:
        lines = (
            row["too_slow"], _first_reads_line(row), _budget_line(row), _archived_line(row), _unwritten_line(row),
            _size_line(row), _buckets_line(row, now), _waiting_line(row),
        )  # fmt: skip
        for line in filter(None, lines):
            say(line)
    _print_findings(document["findings"], now)
    if document["sweeps"]:
        say("")
        sweeps = [_sweep_cells(run, now) for run in document["sweeps"]]
        print_table(("sweep", "last run", "took", "result"), sweeps, empty="", flexible=("result",))
    say("")
    say(f"findings: {_sum(document['findings'])}")
    say(f"repairs and replications under way: {document['repairs']}")
    dead = document["dead_letters"]
    say(
        f"dead letters: {dead}; `zot-artifacts jobs --dead` lists them, `zot-artifacts jobs retry --all` redrives them"
        if dead
        else "dead letters: 0"
    )
    told = (
        *_when_repaired(document["findings"], age(now - repair_every, now)),
        *_by_error(document["failed_jobs"]), *map(_canary, document["canaries"]), *_waiting(document["alarms"]),
        *_undelivered(document["webhooks"]),
    )  # fmt: skip
    for line in told:
        say(line)
    for each in document["paused"]:
        paused = f"{each['scope']} {each['name']}: paused {describe_pause(each['since'], each['reason'])}"
        say(f"{paused}; `zot-artifacts resume {each['scope']} {each['name']}` ends it")
    for check in document["checks"]:
        line = f"{check['name']}: {check['outcome']}, {check['detail']}"
        say(f"{line}; {check['way_out']}" if check["way_out"] and check["outcome"] != "good" else line)


def _print_findings(findings: list[Mapping[str, Any]], now: datetime) -> None:
    if not findings:
        return
    say("")
    rows = [row for each in findings for row in _rows(each, now)]
    print_table(_FINDING_COLUMNS, rows, empty="", flexible=("artifact", "store", "what is done"))
    for each in findings:
        if each["detail"]:  # a narrow terminal would cut it in the table
            say(f"{' '.join(filter(None, (each['kind'], each['store'])))}: {each['detail']}")


def _when_repaired(findings: Iterable[Mapping[str, Any]], every: str) -> Iterator[str]:
    if any(each.get("doing") == WAITS for found in findings for each in found["examples"]):
        yield f"a repair begins within {every} while beat runs, or at once with `zot-artifacts sweep repair`"


def _by_error(failed: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    counts: dict[str, int] = {}
    for each in failed:
        counts[each["error"]] = counts.get(each["error"], 0) + each["count"]
    if told := ", ".join(f"{count} {error}" for error, count in counts.items()):
        yield f"failed in the last day: {told}; `zot-artifacts jobs --failed` lists them"


def _cells(row: Mapping[str, Any], now: datetime) -> tuple[object, ...]:
    share, late = _share(row["read_within_period"], row["copies"] - row["archived"]), row["overdue"]
    oldest = row["oldest_read_at"] and age(row["oldest_read_at"], now)
    forecast = row["forecast_seconds"]
    ahead = None if forecast is None else age(now, now + timedelta(seconds=min(forecast, 10**10)))
    overdue = f"{late} ({_share(late, row['copies'])})" if late else 0
    used = None if row["bytes"] is None else size(row["bytes"])
    return row["store"], row["copies"], used, share, oldest, row["never_read"], overdue, ahead


def _archived_line(row: Mapping[str, Any]) -> str | None:
    count = row["archived"]
    return f"{row['store']}: {counted(count, 'archived copy')}, not readable now and not verified" if count else None


def _unwritten_line(row: Mapping[str, Any]) -> str | None:
    if not (count := row["states"].get(CopyState.WRITING)):
        return None
    return (
        f"{row['store']}: {counted(count, 'copy')} not written yet: the upload runs, or it failed; "
        "`zot-artifacts sweep replicate` adds what was left out for longer than sweep.replicate.late"
    )


def _first_reads_line(row: Mapping[str, Any]) -> str | None:
    late, within = row["first_reads_late"], duration_text(row["first_read_seconds"])
    if row["first_reads_seconds"] > row["first_read_seconds"]:
        takes = duration_text(row["first_reads_seconds"])
        return (
            f"{row['store']}: {counted(row['never_read'], 'copy')} not read since the write; its budget allows "
            f"these reads in {takes}, not in {within}: raise it, or set a longer sweep.verify.first_read"
        )
    if not late:
        return None
    return (
        f"{row['store']}: {counted(late, 'copy')} written more than {within} ago and not read since, to be read as "
        "workers and the budget allow, at the latest within the period"
    )


def _waiting_line(row: Mapping[str, Any]) -> str | None:
    if (waiting := row["waiting"]) is None:
        return None
    verb = "waits" if waiting["jobs"] == 1 else "wait"
    by = f", until {moment(waiting['until'])} at the latest" if waiting["until"] else ""
    return f"{row['store']}: {counted(waiting['jobs'], 'job')} {verb} for it{by}; {waiting['way_out']}"


def _size_line(row: Mapping[str, Any]) -> str | None:
    if row["bytes"] is not None or not row["copies"]:
        return None
    return f"{row['store']}: the next `zot-artifacts sweep verify` counts its bytes"


def _buckets_line(row: Mapping[str, Any], now: datetime) -> str | None:
    """Return what the largest buckets of a store use, and how long ago that was counted."""
    buckets = list(row["buckets"].items())
    told = [f"{bucket} {size(used['bytes'])} in {counted(used['copies'], 'copy')}" for bucket, used in buckets[:NAMED]]
    more = [counted(len(buckets) - NAMED, "more bucket")] if len(buckets) > NAMED else []
    since = row["bytes_counted_at"]
    past = [f"counted {age(since, now)} ago"] if since is not None and since < now else []
    return f"{row['store']}: {', '.join([*told, *more, *past])}" if told else None


def _budget_line(row: Mapping[str, Any]) -> str | None:
    if (used := row["budget"]) is None:
        return None
    money = (
        f", {used['cost_this_month']:,.2f} of {used['cost_per_month']:,.2f} this month"
        if used["cost_per_month"]
        else ""
    )
    rest = "" if used["reads_now"] else f"; it reads again at {used['reads_at']:%H:%M} UTC"
    requests = counted(used["requests_today"], "request")
    return f"{row['store']}: {size(used['bytes_today'])} and {requests} used today{money}{rest}"


def _waiting(channels: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Yield a line for each channel whose alarms wait."""
    for each in filter(itemgetter("pending"), channels):
        yield f"alarms by {each['channel']}: {each['pending']} waiting; {each['error'] or 'they are sent soon'}"


def _undelivered(receivers: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Yield a line for each receiver that does not have the ends of all its jobs."""
    for each in receivers:
        if each["pending"] or each["given_up"]:
            counts = f"{each['pending']} waiting, {each['given_up']} given up"
            yield f"webhook {each['receiver']}: {counts}; {each['error'] or 'they are sent soon'}"


def _canary(times: Mapping[str, Any]) -> str:
    """Return how soon the canaries of a store were found and repaired."""
    words = {"detect": "found", "repair": "repaired"}
    told = [
        f"{word} within {duration_text(times[f'{name}_longest'])} (median {duration_text(times[f'{name}_seconds'])})"
        for name, word in words.items()
        if times[f"{name}_seconds"] is not None
    ]
    return f"canary {times['store']}: {'; '.join(told) or 'damaged, not found yet'}"


def _share(part: int, whole: int) -> str | None:
    return f"{100 * part // whole} %" if whole else None


def _rows(found: Mapping[str, Any], now: datetime) -> Iterator[tuple[object, ...]]:
    kind, store, done = found["kind"], found["store"], found["acknowledged"]
    for each in found["examples"]:
        since = each["since"] and age(each["since"], now)
        yield kind, each["store"], since, f"{each['bucket']}/{each['key']}", each.get("doing")
    known = f"{done} acknowledged" if done else None
    since = found["since"] and age(found["since"], now)
    if found["detail"]:
        yield kind, store, since, f"store {store}" if store else None, known
    elif more := found["count"] - len(found["examples"]):
        acted = f"{found['acted']} acted on" if found["acted"] else None
        said = f"{more} more" if found["examples"] else counted(more, "copy")
        yield kind, store, since, said, ", ".join(filter(None, (acted, known))) or None


def _sweep_cells(run: Mapping[str, Any], now: datetime) -> tuple[object, ...]:
    began = run["started_at"] and age(run["started_at"], now)
    took = None if run["seconds"] is None else duration_text(run["seconds"])
    result = {name: value for name, value in (run["result"] or {}).items() if value}
    if run["sweep"] == SWEEP_PROBE.kind and "faults" in result:
        result["faults"] = list(result["faults"])  # each cause is in the check of its store
    told = "; ".join(f"{name} {flat(value)}" for name, value in result.items())
    error = (run["error"] or {}).get("message")
    return sweep_name(run["sweep"]), began, took, f"{run['state']}: {error or told or 'nothing to do'}"


def _sum(findings: list[Mapping[str, Any]]) -> str:
    counts: dict[str, int] = {}
    for each in findings:
        counts[each["kind"]] = counts.get(each["kind"], 0) + each["count"]
    known = sum(each["acknowledged"] for each in findings)
    told = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    return (f"{told}; {known} of them acknowledged" if known else told) or "none is open"
