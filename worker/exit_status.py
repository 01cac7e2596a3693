"""The exit status of a command, which the report has too."""

from enum import IntEnum


class Status(IntEnum):
    """The exit status of a command. Scripts rely on the numbers."""

    GOOD = 0
    BAD = 1
    """Done, and the answer is bad: failed, corrupt, missing, rejected."""
    USAGE = 2
    """The command line or the configuration is wrong; nothing was done."""
    UNKNOWN = 3
    """No answer: unreadable, unverifiable, no broker, timed out waiting."""
    INTERRUPTED = 130
