"""Rows are sorted on disk, however many there are."""

import random
from pathlib import Path

import pytest

from worker.artifacts.disk_sort import DiskSort
from worker.storage.errors import PermanentError


def test_rows_come_back_in_their_order(tmp_path: Path) -> None:
    """Rows of many runs are merged, twice the same, with line ends and all of Unicode in them."""
    rows = [(f"k{random.randrange(10**6)}\n", number, "\U0001f984é") for number in range(3000)]
    with DiskSort(tmp_path, run=7) as sort:
        for row in rows:
            sort.add(row)
        assert list(sort) == sorted(rows)
        assert list(sort) == sorted(rows)
        assert len(sort._rows) < 7
        assert len(sort._runs) < 200


def test_keys_come_in_the_order_of_listings(tmp_path: Path) -> None:
    """The order of texts is that of their UTF-8 bytes, in which stores list keys."""
    keys = ["a", "a/b", "a-b", "ab", "\uffee", "\U00010000", "é"]
    with DiskSort(tmp_path, run=2) as sort:
        for key in keys:
            sort.add((key,))
        assert [key for (key,) in sort] == sorted(keys, key=str.encode)


def test_a_directory_in_which_no_file_can_be_made_is_named(tmp_path: Path) -> None:
    """Rows that do not fit into memory then fail with the directory in the message, and not as a bug."""
    absent = tmp_path / "absent"
    told = f"no file can be made in {absent}"
    with DiskSort(absent, run=1) as sort, pytest.raises(PermanentError, match=told):
        sort.add(("row",))
