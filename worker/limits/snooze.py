"""The exceptions that give a job back for later at no cost to its attempts."""


class Snooze(Exception):
    """The job has to wait at least `seconds` for something that is no fault of its own. It costs no attempt."""

    store: str | None = None
    """The store that the job has to wait for, if it is one."""

    def __init__(self, reason: str, seconds: float) -> None:
        super().__init__(reason, seconds)
        self.seconds = seconds

    def __str__(self) -> str:
        return str(self.args[0])


class Paused(Snooze):
    """An operator has paused what the job needs. However long that takes, it does not count against the job."""
