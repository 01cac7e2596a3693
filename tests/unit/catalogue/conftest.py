"""A catalogue of its own for each test, in each kind of database."""

from collections.abc import Callable, Iterator

import pytest

from worker.catalogue import Catalogue


@pytest.fixture
def catalogue(catalogue_url: str, make_tables: Callable[[str], None]) -> Iterator[Catalogue]:
    make_tables(catalogue_url)
    opened = Catalogue(catalogue_url)
    yield opened
    opened.close()
