"""The outcome of one check of a service."""

from dataclasses import dataclass

FULL_BROKER = "make room on its disk or in its memory: it accepts jobs again by itself"
"""What to do about a broker that takes no writes."""
RESTART_UP = "stop `zot-artifacts up` and start it again"
"""What to do where a broker is not configured, which means that `up` runs, and a part of it does not answer."""


@dataclass(frozen=True, slots=True)
class Check:
    """The outcome of one check: `good`, `bad`, or `unknown` where there was no answer."""

    name: str
    outcome: str
    detail: str
    way_out: str | None = None
