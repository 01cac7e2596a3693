"""The text of an alarm's message: its subject, and the lines that people read."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import uuid4

from zot_artifact_client.text_escaping import bounded

_NAME = 200
"""Characters of a key in a line."""
_WORDS = {"opened": "opened", "escalated": "still open", "resolved": "resolved"}


def test_digest(now: datetime) -> dict[str, Any]:
    """Return a digest without any finding, for `zot-artifacts alarms test`."""
    return {"id": str(uuid4()), "at": now.isoformat(), "test": True, "opened": [], "escalated": [], "resolved": [],
            "open": {}}  # fmt: skip


def subject_of(payload: Mapping[str, Any]) -> str:
    """Return the digest in one line, without any key: `2 corrupt opened in dr; 1 missing resolved in dr`."""
    if payload.get("test"):
        return "test: alarms of zot-artifacts arrive here"
    parts = [
        f"{group['count']} {group['kind']} {word}" + (f" in {bounded(group['store'], 64)}" if group["store"] else "")
        for change, word in _WORDS.items()
        for group in payload[change]
    ]
    return bounded("; ".join(parts), 150)


def text_of(payload: Mapping[str, Any]) -> str:
    """Return the digest as lines of plain text; what keys and stores contain is escaped."""
    return "\n".join(_lines(payload))


def _lines(payload: Mapping[str, Any]) -> Iterator[str]:
    yield f"{subject_of(payload)} ({payload['at']})"
    for change, word in _WORDS.items():
        for group in payload[change]:
            where = f" in {bounded(group['store'], 64)}" if group["store"] else ""
            yield f"{word}: {group['count']} {group['kind']}{where}, the first since {group['since']}"
            yield from _named(group["examples"], group["count"])
    told = ", ".join(f"{count} {kind}" for kind, count in sorted(payload["open"].items())) or "none"
    yield f"open now: {told}"
    yield "`zot-artifacts status` shows them, `zot-artifacts findings show ID` the evidence of one"


def _named(examples: Sequence[Mapping[str, Any]], count: int) -> Iterator[str]:
    for each in examples:
        what = f"{each['bucket']}/{each['key']}" if each["bucket"] else each["key"] or "the store as a whole"
        more = (each["how"] or each["detail"] or "").removeprefix(f"{what} ")  # as in `a/b does not exist`
        yield f"  {each['id']}: {bounded(what, _NAME)}" + (f": {bounded(more, _NAME)}" if more else "")
    if count > len(examples):
        yield f"  and {count - len(examples)} more"
