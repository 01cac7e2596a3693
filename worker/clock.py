"""The time of day, always in UTC, and how far it can be believed."""

import json
import logging
import secrets
import time
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

logger = logging.getLogger(__name__)

SKEW = timedelta(minutes=5)
"""How far the clocks of two machines may differ. What is further ahead was written by a clock that was ahead."""
_AGREE = timedelta(seconds=1)
"""By how much the clock of this machine may differ from the shared one."""
_shared_start: datetime | None = None
"""When this machine was started, by the shared clock; None while there is no such clock."""
_checked_at = float("-inf")
_CHECKED_FOR = 60.0
_TOLERANCE = 15 * 60
"""Seconds that the clock may gain between two calls without being ahead."""


def now() -> datetime:
    """Return the present moment in UTC: by the clock of this machine, or by the shared one where the two differ."""
    host = host_time()
    if _shared_start is None:
        return host
    shared = _shared_start + timedelta(seconds=uptime())
    return host if abs(host - shared) <= _AGREE else shared


def is_since(modified: datetime, begin: datetime) -> bool:
    """Return whether a store says that an object was written after `begin`, give or take `SKEW`.

    A time in the future does not say so: a wrong clock or an archive gave it, and it would count as young for years.
    """
    return begin - SKEW < modified <= now() + SKEW


def host_time() -> datetime:
    """Return the present moment by the clock of this machine."""
    return datetime.now(UTC)


def earliest() -> datetime:
    """Return the present moment by the clock that is behind: for what is removed when it is old enough."""
    found = now()
    return found if _shared_start is None else min(found, host_time())


def uptime() -> float:
    """Return the seconds since this machine was started; no change of the clock changes them."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def follow(shared: datetime, *, asked_at: float) -> None:
    """Follow the clock of the catalogue's server, which has just said this moment; all machines share it.

    Leases and due times of all workers then go by one clock, even where the clock of a machine is wrong. An answer that
    took long is dropped: it says when it was made, and not when it came. `asked_at`: the uptime before the question.
    """
    global _shared_start, _checked_at  # noqa: PLW0603 - a process has one clock
    if uptime() - asked_at > _AGREE.total_seconds():
        return
    if abs(shared - now()) > _AGREE:
        ahead = (host_time() - shared).total_seconds()
        logger.warning(
            "this machine's clock differs by %+.0f s from that of the catalogue's server: set the one that is wrong; "
            "leases and due times go by the server's",
            ahead,
        )
    _checked_at = uptime()
    _shared_start = shared.astimezone(UTC) - timedelta(seconds=_checked_at)  # a server may tell it in its own zone


def is_unchecked() -> bool:
    """Return whether a minute has passed since the clock was compared with the shared one."""
    return uptime() - _checked_at >= _CHECKED_FOR


@dataclass(frozen=True, slots=True)
class _Seen:
    """What was certain at one moment: the time, and since which start and uptime of the machine it ran on.

    `lead` is by how many seconds at least the clock was ahead of it while the machine has run for `with_it` seconds.
    """

    boot: str
    uptime: float
    time: datetime
    lead: float = 0.0
    with_it: float = 0.0


def not_ahead(kept: Path, hold: timedelta, *, first: datetime | None = None) -> datetime:
    """Return the present moment, or the latest one that is certain while the clock may be ahead.

    The clock may be ahead when it gained more than the machine has run: it was set, or the machine was off. What it has
    gained is believed after the machine has run for `hold` with it. So what is removed when it is older than `hold` is
    never removed early. On a machine that is often off, it is removed after twice `hold` of running time at the latest.

    Args:
        kept: the file in which one kind of removal keeps what it has seen last.
        hold: how long the clock must stay as it is.
        first: a moment that has certainly passed, from which a new file begins. Without it the clock is believed then.
    """
    running = _Seen(boot_id(), uptime(), earliest())
    seen = _read(kept) or replace(running, time=first or running.time)
    ran = max(0.0, running.uptime - (seen.uptime if seen.boot == running.boot else 0.0))
    certain = seen.time + timedelta(seconds=ran)
    lead = (running.time - certain).total_seconds()
    # What the clock gains later, such as each night, waits for itself: it must not begin the wait for the rest anew.
    part, with_it = (min(seen.lead, lead), seen.with_it + ran) if seen.lead else (lead, 0.0)
    if with_it >= hold.total_seconds():
        certain += timedelta(seconds=part)
        lead = part = lead - part
        with_it = 0.0
    if lead <= _TOLERANCE:
        return _write(kept, running)
    return _write(kept, replace(running, time=certain, lead=part, with_it=with_it))


def boot_id() -> str:
    """Return the id of this start of the machine, which its containers share; empty where the system has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""  # no Linux: a start is not told from a run


def _read(kept: Path) -> _Seen | None:
    try:
        document = json.loads(kept.read_text())
        seen = _Seen(**{**document, "time": datetime.fromisoformat(document["time"]).astimezone(UTC)})
        return replace(seen, uptime=float(seen.uptime), lead=float(seen.lead), with_it=float(seen.with_it))
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _write(kept: Path, seen: _Seen) -> datetime:
    temporary = kept.with_name(f".{kept.name}.{secrets.token_hex(4)}")
    try:
        temporary.write_text(json.dumps({**asdict(seen), "time": seen.time.isoformat()}))
        temporary.replace(kept)
    finally:
        temporary.unlink(missing_ok=True)
    return seen.time
