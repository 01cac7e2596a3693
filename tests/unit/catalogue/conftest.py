"""A catalogue of its own for each test, in each kind of database."""

from collections.abc import Iterator

import pytest

from worker.catalogue import Catalogue


@pytest.fixture
def catalogue(catalogue_url: str) -> Iterator[Catalogue]:
    opened = Catalogue(catalogue_url)
    yield opened
    opened.close()
