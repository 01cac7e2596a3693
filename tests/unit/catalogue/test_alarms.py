"""What changed in the findings is told once: opened, still open after some time, resolved."""

from datetime import datetime, timedelta
from typing import cast

import pytest

from worker import clock
from worker.catalogue import Catalogue, FindingKind, NewFinding

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
CHANNELS = ("log", "webhook")


@pytest.fixture
def tell(catalogue: Catalogue):
    """Return what makes a digest and returns `(kind, store, count)` of each change that it tells."""

    def tell(now: datetime | None = None, quiet=("suspect",), channels=CHANNELS):
        now = now or clock.now()
        made = catalogue.alarms.make_digest(channels, quiet=quiet, escalate=DAY, now=now)
        if made is None:
            return {}
        [digest] = [each for each in catalogue.alarms.claim(channels[-1:], now=now, until=now + DAY) if each.id == made]
        return {
            change: [(group["kind"], group["store"], group["count"]) for group in digest.payload[change]]
            for change in ("opened", "escalated", "resolved")
            if digest.payload[change]
        }

    return tell


def open_(
    catalogue: Catalogue, *keys: str, kind: FindingKind = FindingKind.CORRUPT, now: datetime | None = None
) -> None:
    catalogue.findings.see([NewFinding(kind, "dr", "releases", key, 1) for key in keys], now=now or clock.now())


def resolve(catalogue: Catalogue, key: str) -> None:
    [id_] = [each.id for each in catalogue.findings.page() if each.key == key]
    catalogue.findings.resolve([id_], "verified", now=clock.now())


def test_many_findings_are_one_digest(catalogue: Catalogue, tell) -> None:
    """A hundred bad copies are one message with their number and the first few names, for each channel."""
    open_(catalogue, *(f"key-{number:03}" for number in range(100)))
    now = clock.now()
    catalogue.alarms.make_digest(CHANNELS, quiet=(), escalate=DAY, now=now)
    digests = catalogue.alarms.claim(CHANNELS, now=now, until=now + DAY)
    assert {each.channel for each in digests} == set(CHANNELS)
    assert len({each.id for each in digests}) == 1
    [group] = digests[0].payload["opened"]
    assert (group["kind"], group["store"], group["count"], len(group["examples"])) == ("corrupt", "dr", 100, 5)
    assert group["examples"][0]["key"] == "key-000"
    assert digests[0].payload["open"] == {"corrupt": 100}


def test_the_worst_finding_is_told_first(catalogue: Catalogue, tell) -> None:
    """A lost artifact is in the subject of a mail, which is cut, before what has an earlier name in the alphabet.

    A kind that only a newer worker knows is told as well.
    """
    for kind in (FindingKind.BACKUP, FindingKind.CORRUPT, "newer", FindingKind.LOST):
        open_(catalogue, "a", kind=cast("FindingKind", kind))
    assert [kind for kind, _, _ in tell()["opened"]] == ["newer", "lost", "backup", "corrupt"]


def test_each_change_is_told_once(catalogue: Catalogue, tell) -> None:
    """What is open is told when it is new, once more after a day, and when it is resolved; seeing it again is none."""
    open_(catalogue, "a")
    assert tell() == {"opened": [("corrupt", "dr", 1)]}
    open_(catalogue, "a")
    assert tell() == {}
    assert tell(clock.now() + DAY) == {"escalated": [("corrupt", "dr", 1)]}
    assert tell(clock.now() + 2 * DAY) == {}
    resolve(catalogue, "a")
    assert tell() == {"resolved": [("corrupt", "dr", 1)]}
    assert tell() == {}
    open_(catalogue, "a")
    assert tell() == {"opened": [("corrupt", "dr", 1)]}


def test_what_was_opened_and_repaired_between_two_digests_is_told(catalogue: Catalogue, tell) -> None:
    """A copy that rots and is repaired within a minute is still an alarm."""
    open_(catalogue, "a")
    resolve(catalogue, "a")
    assert tell() == {"opened": [("corrupt", "dr", 1)], "resolved": [("corrupt", "dr", 1)]}
    assert tell() == {}


def test_an_acknowledged_finding_does_not_escalate(catalogue: Catalogue, tell) -> None:
    """An operator knows of it."""
    open_(catalogue, "a")
    tell()
    [found] = catalogue.findings.page()
    catalogue.findings.acknowledge(found.id, by="ana", note="known", now=clock.now())
    assert tell(clock.now() + 2 * DAY) == {}


def test_quiet_kinds_are_not_told(catalogue: Catalogue, tell) -> None:
    """They are recorded as told, so that they do not come all at once when the setting changes."""
    open_(catalogue, "a", kind=FindingKind.ORPHAN)
    assert tell(quiet=("orphan",)) == {}
    assert tell(quiet=()) == {}
    open_(catalogue, "b")
    assert tell(quiet=("orphan",)) == {"opened": [("corrupt", "dr", 1)]}


def test_a_digest_waits_until_its_channel_has_delivered_it(catalogue: Catalogue) -> None:
    """A restart finds it again under its id; no second worker gets it while the first one sends it."""
    open_(catalogue, "a")
    now = clock.now()
    made = catalogue.alarms.make_digest(CHANNELS, quiet=(), escalate=DAY, now=now)
    soon = now + timedelta(minutes=5)
    log, webhook = sorted(catalogue.alarms.claim(CHANNELS, now=now, until=soon), key=lambda each: each.channel)
    assert catalogue.alarms.claim(CHANNELS, now=now, until=soon) == []
    catalogue.alarms.delivered(log, now=now)
    catalogue.alarms.failed(webhook, "webhook alarms.example: it answered with status 500", next_at=soon + HOUR)
    assert catalogue.alarms.claim(CHANNELS, now=soon, until=soon) == []
    [again] = catalogue.alarms.claim(CHANNELS, now=soon + HOUR, until=soon + 2 * HOUR)
    assert (again.id, again.channel, again.attempts) == (made, "webhook", 1)
    states = catalogue.alarms.channels()
    assert (states["log"].pending, states["webhook"].pending, states["webhook"].delivered_at) == (0, 1, None)
    assert "status 500" in str(states["webhook"].error)
    assert catalogue.alarms.drop(["log"]) == 1
    catalogue.alarms.prune(before=now + DAY)
    assert catalogue.alarms.channels() == {}


def test_what_a_clock_that_was_a_day_ahead_wrote_is_told_now(catalogue: Catalogue, tell) -> None:
    """A digest that is due tomorrow is delivered, and a finding of tomorrow is escalated, once the clock is right."""
    ahead = clock.now() + DAY
    open_(catalogue, "a", now=ahead)
    assert catalogue.alarms.make_digest(CHANNELS, quiet=(), escalate=DAY, now=ahead)
    now, soon = clock.now(), clock.now() + timedelta(minutes=5)
    assert len(catalogue.alarms.claim(CHANNELS, now=now, until=soon)) == len(CHANNELS)
    assert catalogue.alarms.claim(CHANNELS, now=now, until=soon) == []
    assert tell(now).keys() == {"escalated"}
