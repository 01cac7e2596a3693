"""The exceptions that give a job back for later at no cost to its attempts."""


class Snooze(Exception):
    """The job has to wait at least `seconds` for a reason outside of it; that costs no attempt."""

    store: str | None = None
    """The store that the job has to wait for, or None."""

    def __init__(self, reason: str, seconds: float) -> None:
        super().__init__(reason, seconds)
        self.seconds = seconds

    def __str__(self) -> str:
        return str(self.args[0])


class Paused(Snooze):
    """An operator has paused what the job needs. The length of a pause does not count against the job."""
