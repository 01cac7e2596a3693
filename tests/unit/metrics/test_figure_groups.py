"""A group of figures shows what it could compute last, or nothing: never an old figure as a new one."""

from collections.abc import Iterator

import redis
from prometheus_client import Metric

from worker.metrics.background_groups import Group, Groups
from worker.metrics.family_builders import gauge


class Server:
    """What has a figure, while it answers."""

    def __init__(self) -> None:
        self.away = False

    def collect(self) -> Iterator[Metric]:
        yield gauge("first", "A figure.", [((), 1.0)])
        if self.away:
            raise redis.ConnectionError("it is away")
        yield gauge("second", "Another.", [((), 2.0)])


def shown(groups: Groups) -> dict[str, float]:
    samples = [sample for family in groups.collect() for sample in family.samples]
    return {each.name.removeprefix("zot_artifacts_"): each.value for each in samples}


def test_figures_of_a_server_that_is_away_are_left_out_until_it_is_back() -> None:
    """Not even those are shown that were computed before the error, and `figures_up` says so."""
    server = Server()
    group = Group("broker", server.collect, 1.0)
    groups = Groups([group])
    group.refresh()
    assert (shown(groups)["figures_up"], shown(groups)["second"]) == (1, 2)
    server.away = True
    group.refresh()
    assert (shown(groups)["figures_up"], "first" in shown(groups), "second" in shown(groups)) == (0, False, False)
    server.away = False
    group.refresh()
    assert (shown(groups)["figures_up"], shown(groups)["first"]) == (1, 1)


def test_a_bug_in_one_group_is_told_and_stops_nothing() -> None:
    """An error that is not expected leaves that group without figures; the others are shown."""
    broken, whole = Group("broken", lambda: iter([1 // 0]), 1.0), Group("whole", Server().collect, 1.0)  # type: ignore[list-item]
    for group in (broken, whole):
        group.refresh()
    assert (broken.up, whole.up, shown(Groups([broken, whole]))["second"]) == (False, True, 2)
