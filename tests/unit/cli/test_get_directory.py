"""The files of `get -r`: one key a file, and memory that does not grow with the number of keys."""

import os
import tracemalloc
from pathlib import Path

import pytest

from worker.cli.get_directory import Refused, Target
from worker.cli.keys_of_written_files import KeysOfFiles


def test_a_second_key_gets_no_file_of_the_first(tmp_path: Path) -> None:
    """Two keys that the disk takes for one name are told apart by their file, before the second is written."""
    target = Target(tmp_path)
    (tmp_path / "App").write_bytes(b"first")
    target.path_of("App")
    os.link(tmp_path / "App", tmp_path / "app")  # one file by two names, as on a disk that does not tell case
    with pytest.raises(Refused, match="from that of App"):
        target.path_of("app")
    assert target.path_of("App") == tmp_path / "App"


def test_a_file_with_the_numbers_of_a_replaced_one_is_not_refused(tmp_path: Path) -> None:
    """A disk uses the number of a file that was replaced for the next one, which may belong to another key."""
    target = Target(tmp_path)
    (tmp_path / "a").write_bytes(b"old")
    target.path_of("a")
    (tmp_path / "a").rename(tmp_path / "b")
    (tmp_path / "a").write_bytes(b"new")
    target.path_of("a")
    assert target.path_of("b") == tmp_path / "b"
    assert target.path_of("a") == tmp_path / "a"


def test_the_files_of_many_keys_are_not_kept_in_memory() -> None:
    """What is remembered of 20,000 keys takes less than 1 MiB of Python's memory."""
    placed = KeysOfFiles()
    tracemalloc.start()
    try:
        for inode in range(20_000):
            placed.owner(1, 2**64 - 1 - inode, f"a/long/enough/key/{inode:032}")
        assert tracemalloc.get_traced_memory()[0] < 1 << 20
    finally:
        tracemalloc.stop()
    assert placed.owner(1, 2**64 - 1, "other") == f"a/long/enough/key/{0:032}"
    placed.close()


def test_a_full_temporary_directory_is_an_error_of_the_file() -> None:
    """The artifact is reported as not written, as with a full DEST, and the command does not end with a traceback."""
    placed = KeysOfFiles()
    placed._table.execute("PRAGMA max_page_count = 2")
    with pytest.raises(OSError, match="in the temporary directory: database or disk is full"):
        placed.owner(1, 1, "key" * 10_000)
    placed.close()
