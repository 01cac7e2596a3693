"""The outcome of one check of a service."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Check:
    """The outcome of one check: `good`, `bad`, or `unknown` where there was no answer."""

    name: str
    outcome: str
    detail: str
    way_out: str | None = None
