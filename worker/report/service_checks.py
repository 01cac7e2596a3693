"""The checks of the services and of the catalogue.

The clients of the broker are imported only if there is one: they are a third of all that `status` and `stores` import.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from worker.catalogue import Catalogue, CatalogueError
from worker.readable import moment
from worker.report.check import Check
from worker.settings.model import NoBroker, Settings

if TYPE_CHECKING:
    from worker.limits.catalogue_outage import Outage
    from worker.limits.circuit_breaker import OpenBreaker

_NAMED = 3
"""Workers that one check names."""
_LOCKED_FOR = 10.0
"""Seconds without a turn to write after which the catalogue counts as locked: a worker writes for milliseconds."""


def broker_checks(settings: Settings) -> Iterator[Check]:
    """Check the broker, the result backend, the workers and beat."""
    try:
        url = settings.broker_url
    except NoBroker as error:
        yield Check("broker", "unknown", str(error))
        return
    from worker.report.broker_checks import ask_broker

    yield from ask_broker(settings, url)


def owner_of_broker(settings: Settings, catalogue: Catalogue) -> Iterator[Check]:
    """Tell that broker and catalogue do not belong to each other alone: there is another one of either beside it."""
    try:
        _ = settings.broker_url
    except NoBroker:
        return
    from worker.intake.catalogue_of_broker import OtherCatalogue, check_owner, copies_in_use, other_brokers

    try:
        check_owner(settings, catalogue.identity, claim=False)
    except OtherCatalogue as error:
        yield Check("catalogue of the broker", "bad", str(error))
        return
    for place in other_brokers(settings, catalogue.brokers):
        yield Check(
            "broker of the catalogue",
            "bad",
            f"jobs of this catalogue are also sent over {place}: `sweep.recover` sends open jobs of one over the other",
            "give all programs of one catalogue the same ZOT_BROKER",
        )
    for place in copies_in_use(settings, catalogue):
        yield Check(
            "copy of the catalogue",
            "bad",
            f"workers on this broker also use a copy, {place}: each job is recorded in one of the two",
            "stop the programs of one of them, or give them a broker of their own; neither has what the other recorded",
        )


def open_breakers(settings: Settings) -> "dict[str, OpenBreaker]":
    """Return the circuit breakers that are open or half-open, by store; none while their Redis does not answer.

    `doctor` and `status` check that Redis by itself.
    """
    try:
        url = settings.results_url
    except NoBroker:
        return {}
    from worker.report.broker_checks import read_breakers

    return read_breakers(settings, url)


def way_out_of_breaker(store: str) -> str:
    """Return what to do about a store whose circuit breaker is open."""
    return (
        f"repair the store, then `zot-artifacts sweep probe` closes the breaker; "
        f"`zot-artifacts jobs --state queued --store {store}` lists the jobs that wait"
    )


def told_since_when(settings: Settings, fault: object) -> str:
    """Return what is wrong with the catalogue, and since when workers cannot use it, as far as Redis has that."""
    since = max((each.since for each in _outages(settings).values()), default=None)  # before that, one of them could
    return f"{fault}; no worker can use it since {moment(since)}, and all jobs wait" if since else str(fault)


def catalogue_of_workers(settings: Settings) -> Iterator[Check]:
    """Tell that workers cannot use a catalogue that can be used here, as after its password has changed."""
    if away := _outages(settings):
        newest = max(away.values(), key=lambda each: each.last)
        yield Check(
            "catalogue of the workers",
            "bad",
            f"it answers here, and {_since_when(away)}; the last error there: {newest.error}",
            "where ZOT_CATALOGUE is another one there than here, correct it, and restart these workers",
        )


def _since_when(away: "dict[str, Outage]") -> str:
    """Return which workers cannot use the catalogue, and since when each of them."""
    named = [f"{name} since {moment(each.since)}" for name, each in away.items()]
    more = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
    return f"jobs wait at {', '.join(named[:_NAMED])}{more}, which cannot use it"


def _outages(settings: Settings) -> "dict[str, Outage]":
    try:
        url = settings.results_url
    except (NoBroker, OSError):  # OSError: the data directory cannot be read
        return {}
    from worker.limits.catalogue_outage import outages

    return outages(url)


def catalogue_writes(settings: Settings, catalogue: Catalogue) -> Iterator[Check]:
    """Tell that nothing can be written to the catalogue: jobs wait, although all services answer.

    The workers then wait for the same cause: `catalogue_of_workers` would name another one.
    """
    try:
        locked = catalogue.ledger.is_locked(within=_LOCKED_FOR)
    except CatalogueError as error:  # its disk is full, or it is read only; the error names the way out
        name, detail, way_out = "catalogue writes", str(error), None
    else:
        if not locked:
            return
        detail = f"another program keeps it locked: nothing could be written to it for {_LOCKED_FOR:.0f} s"
        name, way_out = "catalogue lock", "end that program, such as a backup or an open transaction in a shell"
    away = _outages(settings)
    yield Check(name, "bad", f"{detail}; {_since_when(away)}" if away else detail, way_out)
