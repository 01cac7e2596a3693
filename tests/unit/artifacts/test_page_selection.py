"""Which objects of a batch are one page."""

from itertools import islice

import pytest

from worker.artifacts.page_selection import limits_of, page_sizes
from worker.settings.section_models import PageSettings


@pytest.mark.parametrize(
    ("most", "total", "objects"),
    [(500, 60, 100), (500, 500, 125), (500, 501, 126), (500, 2_000, 500), (500, 10**6, 500), (3, 500, 3)],
)
def test_a_small_batch_has_a_page_for_each_of_several_processes(most: int, total: int, objects: int) -> None:
    """A batch that would fit into one page is split in four, but no page has fewer than a hundred objects for that."""
    assert limits_of(PageSettings(objects=most), total).objects == objects


def test_a_batch_of_unknown_size_has_pages_as_configured() -> None:
    """Without a total the limits are those of the settings."""
    assert limits_of(PageSettings(objects=7), None) == PageSettings(objects=7)


@pytest.mark.parametrize(
    ("most", "left", "sizes"),
    [
        (500, 2_000, [500, 375, 282, 211, 158, 119, 100, 100, 100, 100]),
        (500, 10**6, [500] * 10),
        (500, 60, [100] * 10),
        (3, 2_000, [3] * 10),
    ],
)
def test_the_last_pages_are_smaller(most: int, left: int, sizes: list[int]) -> None:
    """Each page has a quarter of what is left, so that all processes end at about the same time."""
    assert list(islice(page_sizes(most, left), 10)) == sizes
