"""The outcome of one check of a service."""

from dataclasses import dataclass

FULL_BROKER = "make room on its disk or in its memory: it accepts jobs again by itself"
"""What to do about a broker that takes no writes."""


@dataclass(frozen=True, slots=True)
class Check:
    """The outcome of one check: `good`, `bad`, or `unknown` where there was no answer."""

    name: str
    outcome: str
    detail: str
    way_out: str | None = None
