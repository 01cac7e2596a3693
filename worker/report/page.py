"""The report as one HTML page: no script, nothing that is loaded, readable light and dark and on a phone."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from html import escape
from string import Template
from typing import Any

from worker.catalogue import EVIDENCE_OUTCOMES
from worker.counted import counted
from worker.readable import age, moment, size
from worker.storage.durations_and_sizes import duration_text
from zot_artifact_client.text_escaping import bounded

_PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title><style>
:root { color-scheme: light dark; --ink: #1a1c1e; --dim: #5b6168; --paper: #fff; --line: #d9dde1; --good: #17803d;
  --bad: #b3261e; --bar: #3b6fb6; --new: #9db8dc; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8ea; --dim: #a0a7ae; --paper: #15181b; --line: #33383d;
  --good: #5ccb82; --bad: #ff8a80; --bar: #7fa8e0; --new: #3d5578; } }
body { margin: 0 auto; max-width: 60rem; padding: 1rem; background: var(--paper); color: var(--ink);
  font: 16px/1.45 system-ui, sans-serif; }
h1 { font-size: 1.4rem; margin: 0 0 .2rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .2rem; }
p { margin: .3rem 0; } .dim, caption { color: var(--dim); } .good { color: var(--good); } .bad { color: var(--bad); }
.bar { color: var(--bar); } .new { color: var(--new); }
.verdict { font-size: 1.2rem; font-weight: 600; margin: .6rem 0; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { text-align: left; padding: .3rem .7rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th, td { white-space: nowrap; } th { color: var(--dim); font-weight: 500; }
td.long { white-space: normal; overflow-wrap: anywhere; min-width: 10rem; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)); gap: 0 2rem; }
svg { width: 100%; height: auto; } svg text { fill: var(--dim); font-size: 11px; }
code { font-size: .85em; overflow-wrap: anywhere; }
@media (max-width: 40rem) { thead { display: none; } table, tbody { display: block; }
  tr { display: grid; grid-template-columns: 1fr 1fr; gap: 0 1rem; padding: .5rem 0;
    border-bottom: 1px solid var(--line); }
  td, td.long { border: 0; padding: 0; white-space: normal; overflow-wrap: anywhere; min-width: 0; }
  td:first-child, td.long { grid-column: 1 / -1; } td:first-child { font-weight: 600; }
  td[data-name]:not(:first-child)::before { content: attr(data-name) " "; color: var(--dim); } }
</style></head><body>
<h1>$title</h1><p class="dim">$at, catalogue <code>$catalogue</code></p>
<p class="verdict $tone">$verdict</p>
<h2>Coverage</h2>$stores
<h2>Checks without reading</h2>$evidence
<h2>Budgets</h2>$budgets
<h2>Open findings</h2>$findings
<h2>Findings since $since</h2>$handled
<h3>Time to detect and to repair</h3>$times
<h3>Canaries</h3>$canaries
<h2>Level of preservation</h2>$level
<h2>Resolved last</h2>$resolved
<h2>Quarantine</h2>$quarantine
<h2>Dead letters</h2>$dead
<h2>Sweeps</h2>$sweeps
<h2>Checks</h2>$checks
<h2>Verification log</h2>$log
</body></html>
""")
_LEGEND = (
    '<p class="dim">Copies by the time since their last full read: <span class="bar">■</span> read, '
    '<span class="new">■</span> not read since their write, <span class="bad">■</span> overdue.</p>'
)
_BAD = {"corrupt", "missing", "size_mismatch"}
_HEIGHT = 110
_MOST = 2000
"""Characters of one text from outside that are shown."""
_WIDTH = 480


def page_of(document: Mapping[str, Any]) -> str:
    """Return the report that `report --json` prints as an HTML page."""
    now: datetime = document["at"]
    verdict, tone = _verdict(document)
    return _PAGE.substitute(
        title="Artifact copies: integrity report",
        at=moment(now),
        catalogue=_text(document["catalogue"]),
        verdict=verdict,
        tone=tone,
        stores=_stores(document["stores"], now),
        evidence=_evidence(document["stores"], now),
        budgets=_budgets(document["stores"]),
        findings=_findings(document["findings"], now),
        since=moment(document["since"]),
        handled=_handled(document["handled"]),
        times=_times(document),
        canaries=_canaries(document["canaries"], now),
        level=_level(document["preservation"]),
        resolved=_resolved(document["resolved"]),
        quarantine=_quarantine(document["stores"]),
        dead=_table(
            ("job", "kind", "ended", "cause"),
            [(each["job"], each["kind"], _moment(each["at"]), each["message"]) for each in document["dead"]],
            "No job is dead.",
        ),
        sweeps=_table(
            ("sweep", "last run", "took", "state"),
            [
                (each["sweep"], _moment(each["started_at"]), _seconds(each["seconds"]), each["state"])
                for each in document["sweeps"]
            ],
            "No sweep has run yet.",
        ),
        checks=_table(
            ("check", "outcome", "detail"),
            [(each["name"], each["outcome"], each["detail"]) for each in document["checks"]],
            "No check was made.",
        ),
        log=_log(document["log_head"]),
    )


def _verdict(document: Mapping[str, Any]) -> tuple[str, str]:
    counts: dict[str, int] = {}
    for each in document["findings"]:
        counts[each["kind"]] = counts.get(each["kind"], 0) + each["count"] - each["acknowledged"]
    told = [f"{count} {_text(kind.replace('_', ' '))}" for kind, count in counts.items() if count]
    told += [counted(document["dead_letters"], "dead letter")] if document["dead_letters"] else []
    told += [_text(each["name"]) for each in document["checks"] if each["outcome"] == "bad"]
    if told:
        return f"Open: {', '.join(told)}.", "bad"
    if counts:
        return "Nothing is open but what an operator has acknowledged.", "good"
    return "Nothing is open.", "good"


def _stores(stores: Sequence[Mapping[str, Any]], now: datetime) -> str:
    rows = [
        (
            row["store"], row["copies"], _size(row["bytes"]),
            _share(row["read_within_period"], row["copies"] - row["archived"]),
            row["archived"],
            age(row["oldest_read_at"], now) if row["oldest_read_at"] else None, row["never_read"], row["overdue"],
            _ahead(row["forecast_seconds"]) if row["forecast_seconds"] != 0 else "done",
            ", ".join(f"{count} {word}" for word, count in row["bad_verdicts"].items()) or "none",
        )
        for row in stores
    ]  # fmt: skip
    names = (
        "store",
        "copies",
        "size",
        "read in period",
        "archived",
        "oldest read",
        "never read",
        "overdue",
        "all read in",
        "bad verdicts",
    )
    plots = "".join(_plot(row) for row in stores if row["copies"])
    more = f'<div class="plots">{plots}</div>{_LEGEND}' if plots else ""
    return _table(names, rows, "No store is configured.") + more


def _plot(row: Mapping[str, Any]) -> str:
    """Return the plot of the ages of a store's copies against its period, as inline SVG."""
    read, new = row["ages"]["read"], row["ages"]["not_read_yet"]
    most = max(1, *(one + other for one, other in zip(read, new, strict=True)))
    wide, bars = _WIDTH / len(read), []
    period = timedelta(seconds=row["period_seconds"])
    within = round(row["period_seconds"] / row["ages"]["bar_seconds"])
    for number, (one, other) in enumerate(zip(read, new, strict=True)):
        at, top = number * wide, float(_HEIGHT)
        colours = ("var(--bar)", "var(--new)") if number < within else ("var(--bad)", "var(--bad)")
        for count, colour in zip((one, other), colours, strict=True):
            tall = count / most * (_HEIGHT - 14)
            top -= tall
            if count:
                bars.append(
                    f'<rect x="{at + 1:.1f}" y="{top:.1f}" width="{wide - 2:.1f}" height="{max(tall, 1):.1f}" '
                    f'fill="{colour}"/>'
                )
    line, period_text = within * wide, duration_text(period)
    label = _text(f"ages of the {counted(row['copies'], 'copy')} in {row['store']} against the period of {period_text}")
    return (
        f"<div><h3>{_text(row['store'])}</h3>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT + 16}" role="img" aria-label="{label}">{"".join(bars)}'
        f'<line x1="0" y1="{_HEIGHT}" x2="{_WIDTH}" y2="{_HEIGHT}" stroke="var(--line)"/>'
        f'<line x1="{line}" y1="0" x2="{line}" y2="{_HEIGHT}" stroke="var(--dim)" stroke-dasharray="3 3"/>'
        f'<text x="0" y="{_HEIGHT + 13}">now</text>'
        f'<text x="{line}" y="{_HEIGHT + 13}" text-anchor="middle">period, {period_text}</text></svg></div>'
    )


def _evidence(stores: Sequence[Mapping[str, Any]], now: datetime) -> str:
    rows = [
        (
            row["store"],
            *(kept["outcomes"].get(outcome, 0) for outcome in EVIDENCE_OUTCOMES),
            age(kept["oldest_at"], now),
        )
        for row in stores
        if (kept := row["evidence"]) is not None
    ]
    told = (
        '<p class="dim">What stores say of their copies, compared with what was recorded at the write. '
        "No byte was read, so none of them counts as verified.</p>"
    )
    return _table(("store", *EVIDENCE_OUTCOMES, "oldest check"), rows, "No copy was checked in this way.") + (
        told if rows else ""
    )


def _budgets(stores: Sequence[Mapping[str, Any]]) -> str:
    rows: list[tuple[object, ...]] = []
    for row in stores:
        used, whole = row["budget"], row["pass"]
        ahead = (f"{whole['cost']:,.2f}" if whole["cost"] else None, _ahead(whole["seconds"]))
        if used is None and whole["cost"]:
            rows.append((row["store"], None, None, None, None, *ahead, "now"))
        elif used is not None:
            most = f"{used['cost_per_month']:,.2f}" if used["cost_per_month"] else None
            again = "now" if used["reads_now"] else _moment(used["reads_at"])
            spent = (size(used["bytes_today"]), used["requests_today"], f"{used['cost_this_month']:,.2f}")
            rows.append((row["store"], *spent, most, *ahead, again))
    names = (
        "store",
        "read today",
        "requests today",
        "cost this month",
        "at most",
        "a pass costs",
        "and takes",
        "reads again",
    )
    return _table(names, rows, "No store has a budget for the verify sweep or a price.")


def _findings(findings: Sequence[Mapping[str, Any]], now: datetime) -> str:
    rows = []
    for each in findings:
        some = ", ".join(f"{of['bucket']}/{of['key']}" for of in each["examples"])
        done = sorted({of["doing"] for of in each["examples"] if of.get("doing")})
        known = f"{each['acknowledged']} acknowledged" if each["acknowledged"] else None
        told = ", ".join(filter(None, [*done, known])) or None
        since = age(each["since"], now) if each["since"] else None
        rows.append((each["kind"], each["store"], each["count"], since, each["detail"] or some or None, told))
    return _table(("finding", "store", "count", "since", "what", "what is done"), rows, "None is open.")


def _handled(handled: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        (
            kind, each["opened"], each["resolved"], each["opened"] - each["resolved"],
            _seconds(each["median_seconds"]), _seconds(each["longest_seconds"]),
        )
        for kind, each in handled.items()
    ]  # fmt: skip
    return _table(("finding", "opened", "resolved", "open", "median", "longest"), rows, "None was opened.")


def _times(document: Mapping[str, Any]) -> str:
    found = document["detected"]
    repaired = [each for kind, each in document["handled"].items() if kind in _BAD and each["resolved"]]
    longest = max((each["longest_seconds"] for each in repaired), default=None)
    middle = max((each["median_seconds"] for each in repaired), default=None)
    rows = [
        ("detect", found["findings"], _seconds(found["median_seconds"]), _seconds(found["longest_seconds"]),
         "from the last good read of the copy, so at most"),
        ("repair", sum(each["resolved"] for each in repaired), _seconds(middle), _seconds(longest),
         "from the finding to its end; the median of the slowest kind"),
    ]  # fmt: skip
    return _table(("time to", "bad copies", "median", "longest", "counted"), rows, "")


def _canaries(canaries: Sequence[Mapping[str, Any]], now: datetime) -> str:
    rows = [
        (
            each["store"], each["rounds"], age(each["last_damaged_at"], now) if each["last_damaged_at"] else None,
            _seconds(each["detect_seconds"]), _seconds(each["detect_longest"]),
            _seconds(each["repair_seconds"]), _seconds(each["repair_longest"]),
        )
        for each in canaries
    ]  # fmt: skip
    names = ("store", "damaged", "last", "found after", "longest", "repaired after", "longest")
    told = '<p class="dim">Objects of our own that are damaged on purpose, in the last 30 days.</p>'
    return _table(names, rows, "No canary was damaged yet.") + (told if rows else "")


def _level(reached: Mapping[str, Any]) -> str:
    words = {True: "met", False: "not met", None: "not known"}
    rows = [(each["level"], each["asks"], words[each["met"]], each["why"]) for each in reached["demands"]]
    missing = "; ".join(map(_text, reached["missing"]))
    told = f"<p>Missing for level {reached['level'] + 1}: {missing}.</p>" if missing else ""
    level = f'<p class="verdict">Level {reached["level"]} of 4</p><p class="dim">{_text(reached["matrix"])}</p>'
    return level + told + _table(("level", "it asks to", "", "why"), rows, "")


def _resolved(resolved: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (
            each["kind"], each["store"], f"{each['bucket']}/{each['key']}" if each["bucket"] else None,
            _moment(each["opened_at"]), _seconds((each["resolved_at"] - each["opened_at"]).total_seconds()),
            each["how"],
        )
        for each in resolved
    ]  # fmt: skip
    return _table(("finding", "store", "artifact", "opened", "after", "resolved by"), rows, "None was resolved yet.")


def _quarantine(stores: Sequence[Mapping[str, Any]]) -> str:
    rows = [(row["store"], kept["objects"], _size(kept["bytes"]), kept["error"])
            for row in stores for kept in [row["quarantine"]]]  # fmt: skip
    return _table(("store", "objects", "bytes", "error"), rows, "No store is configured.")


def _log(head: Mapping[str, Any] | None) -> str:
    if head is None:
        return "<p>The log is empty.</p>"
    signed = head.get("signature")
    signature = f"<p>Its signature: <code>{_text(signed)}</code></p>" if signed else ""
    return (
        f"<p>{counted(head['count'], 'row')}, the last of {_text(moment(head['at']))}.</p>"
        f"<p>Its hash: <code>{_text(head['hash'])}</code></p>" + signature
    )


def _table(names: Iterable[str], rows: Sequence[Sequence[object]], empty: str) -> str:
    if not rows:
        return f'<p class="dim">{empty}</p>'
    names = tuple(names)
    head = "".join(f"<th>{name}</th>" for name in names)
    body = "".join(f"<tr>{''.join(map(_cell, names, row))}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(name: str, value: object) -> str:
    """Return a cell; on a phone, where a row is a card, its name is before its value."""
    text = _text("-" if value is None else value)
    tone = {
        "good": "good",
        "met": "good",
        "not met": "bad",
        "succeeded": "good",
        "bad": "bad",
        "failed": "bad",
        "dead": "bad",
    }.get(text, "")
    kind = "long" if len(text) > 24 else tone  # noqa: PLR2004 - what a phone shows of one cell
    of = f' data-name="{name}"' if name else ""
    return f'<td class="{kind}"{of}>{text}</td>' if kind else f"<td{of}>{text}</td>"


def _text(value: object) -> str:
    """Return a text from outside as HTML: escaped, bounded, its control characters visible."""
    return escape(bounded(value, _MOST))


def _share(part: int, whole: int) -> str | None:
    return f"{100 * part / whole:.1f} %" if whole else None


def _ahead(value: float | None) -> str | None:
    return None if value is None else _seconds(min(value, 10.0**10))


def _size(value: float | None) -> str | None:
    return None if value is None else size(value)


def _moment(value: datetime | None) -> str | None:
    return moment(value) if value else None


def _seconds(value: float | None) -> str | None:
    return None if value is None else duration_text(value)
