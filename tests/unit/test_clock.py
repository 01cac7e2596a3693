"""Test how far the time of day is believed where something is removed for good."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from worker import clock

HOLD = timedelta(days=7)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
real_now = clock.now


class Machine:
    """A machine with a clock that can be moved."""

    def __init__(self, kept: Path) -> None:
        self.kept = kept
        self.first: datetime | None = None
        self.now, self.uptime, self.starts = BEGIN, 0.0, 1

    def __call__(
        self, ran: timedelta = timedelta(), *, moved: timedelta = timedelta(), off: timedelta | None = None
    ) -> datetime:
        """Return the time that is certain after the machine was off, ran, and had its clock moved."""
        if off is not None:
            self.now, self.uptime, self.starts = self.now + off, 0.0, self.starts + 1
        self.now, self.uptime = self.now + ran + moved, self.uptime + ran.total_seconds()
        return clock.not_ahead(self.kept, HOLD, first=self.first)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Return a machine whose clock and uptime are those of this process."""
    made = Machine(tmp_path / "kept")
    monkeypatch.setattr(clock, "now", lambda: made.now)
    monkeypatch.setattr(clock, "uptime", lambda: made.uptime)
    monkeypatch.setattr(clock, "boot_id", lambda: str(made.starts))
    return made


def test_a_clock_that_goes_right_is_believed(machine: Machine) -> None:
    """Small corrections, a clock that is set back and a short restart change nothing."""
    assert machine() == BEGIN
    assert machine(30 * DAY) == BEGIN + 30 * DAY
    assert machine(moved=timedelta(minutes=10)) == clock.now()
    assert machine(moved=-2 * HOUR) == clock.now()
    assert machine(HOUR, off=timedelta(minutes=5)) == clock.now()


def test_a_clock_that_is_set_ahead_is_not_believed_until_it_is_right(machine: Machine) -> None:
    """The time that is certain advances as the machine runs."""
    machine()
    assert machine(moved=30 * DAY) == BEGIN
    assert machine(DAY) == BEGIN + DAY
    assert machine(DAY, moved=-30 * DAY) == BEGIN + 2 * DAY == clock.now()
    assert machine(DAY) == BEGIN + 3 * DAY


def test_a_clock_that_was_corrected_is_believed_after_the_grace(machine: Machine) -> None:
    """What is ahead for as long as a grace period is the right time; a second jump has a wait of its own."""
    machine()
    machine(moved=30 * DAY)
    assert machine(6 * DAY) == BEGIN + 6 * DAY
    assert machine(moved=5 * DAY) == BEGIN + 6 * DAY
    assert machine(DAY) == BEGIN + 30 * DAY + 7 * DAY
    assert machine(6 * DAY) == BEGIN + 30 * DAY + 13 * DAY
    assert machine(DAY) == clock.now()
    assert machine(DAY) == clock.now()


def test_a_clock_that_was_corrected_in_part_is_believed_in_part(machine: Machine) -> None:
    """Only what it was ahead by for all of the grace period is believed."""
    machine()
    machine(moved=30 * DAY)
    machine(3 * DAY, moved=-20 * DAY)
    machine(3 * DAY, moved=20 * DAY)
    assert machine(DAY) == BEGIN + 10 * DAY + 7 * DAY


def test_the_time_for_which_a_machine_was_off_is_not_certain(machine: Machine) -> None:
    """A clock that is ahead at the start of a machine cannot be told from one that ran on."""
    machine()
    assert machine(HOUR, off=30 * DAY) == BEGIN + HOUR
    assert machine(HOLD) == clock.now()


def test_a_machine_that_is_off_every_night_is_behind_by_a_bounded_time(machine: Machine) -> None:
    """What is due is removed at the latest when the machine has run for twice the grace period after that."""
    machine()
    for _ in range(365):
        machine(HOUR, off=timedelta(hours=16))
        certain = machine(timedelta(hours=7))
        assert clock.now() - certain <= 2 * HOLD * 3


@pytest.mark.parametrize("content", [None, "{"])
def test_without_a_record_a_clock_is_believed_after_the_grace(machine: Machine, content: str | None) -> None:
    """Where something waits to be removed, a clock without a good record may be ahead by all the time since then."""
    machine.first = BEGIN
    if content:
        machine.kept.write_text(content)
    assert machine(moved=30 * DAY) == BEGIN
    assert machine(6 * DAY) == BEGIN + 6 * DAY
    assert machine(DAY) == BEGIN + 37 * DAY


@pytest.mark.parametrize("content", ["", "[]", '{"time": 1}', '{"time": "2026-01-01"}'])
def test_a_damaged_record_is_written_anew(tmp_path: Path, content: str) -> None:
    """What is no record of the clock is as none."""
    kept = tmp_path / "kept"
    kept.write_text(content)
    assert abs(clock.not_ahead(kept, HOLD) - clock.now()) < HOUR
    assert abs(clock.not_ahead(kept, HOLD) - clock.now()) < HOUR


def test_an_answer_of_the_server_that_came_late_tells_no_time(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It says the moment at which it was made. The next transaction asks again.

    Where the two clocks differ, either may be the wrong one.
    """
    monkeypatch.setattr(clock, "now", real_now)
    monkeypatch.setattr(clock, "host_time", lambda: machine.now)
    monkeypatch.setattr(clock, "_shared_start", None)
    monkeypatch.setattr(clock, "_checked_at", float("-inf"))
    machine.now, machine.uptime = BEGIN + timedelta(seconds=9), 109.0
    clock.follow(BEGIN, asked_at=100.0)
    assert (clock.now(), clock.is_unchecked()) == (machine.now, True)
    clock.follow(BEGIN, asked_at=108.5)
    assert (clock.now(), clock.is_unchecked()) == (BEGIN, False)
    assert "differs by +9 s from that of the catalogue's server: set the one that is wrong" in caplog.text
