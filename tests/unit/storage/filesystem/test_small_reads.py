"""Reading many small files at once: in order, from the disk, without a trace."""

import os

import pytest

from tests.open_files import open_below
from worker.storage.config import FilesystemConfig
from worker.storage.driver import Digest
from worker.storage.filesystem.digest_attribute import write_digest
from worker.storage.filesystem.driver import FilesystemDriver
from worker.storage.store import Store

COUNT = 60


@pytest.fixture
def laid(tmp_path):
    bucket = tmp_path / "b"
    for number in range(COUNT):
        path = bucket / f"{number % 3}" / f"{number:03}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"%d" % number)
    return tmp_path


def wanted():
    import hashlib

    for number in range(COUNT):
        data = b"%d" % number
        yield "b", f"{number % 3}/{number:03}", Digest(len(data), hashlib.sha256(data).hexdigest())


def test_verdicts_are_in_order_among_odd_objects(laid):
    """A missing, an altered, a too large and an oddly named object have their own verdicts, in the order asked."""
    (laid / "b/1/001").unlink()
    (laid / "b/2/002").write_bytes(b"x")
    (laid / "b/0/003").write_bytes(b"too long")
    odd = laid / "b" / "ä ö"
    odd.write_bytes(b"7")
    asked = list(wanted())
    asked[7] = ("b", "ä ö", asked[7][2])
    found = [
        each.verdict.value
        for each in Store(FilesystemDriver("main", FilesystemConfig(root=laid))).verify_objects(asked)
    ]
    assert found == ["verified", "missing", "corrupt", "size_mismatch", *["verified"] * (COUNT - 4)]
    assert open_below(laid) == []


def test_files_are_closed_when_the_reading_stops(laid):
    """A page that stops in the middle leaves no file open that was opened ahead."""
    verdicts = Store(FilesystemDriver("main", FilesystemConfig(root=laid))).verify_objects(wanted())
    next(verdicts)
    assert open_below(laid)
    verdicts.close()
    assert open_below(laid) == []


@pytest.mark.parametrize("cached", [False, True])
def test_bytes_come_from_the_disk_unless_the_cache_is_allowed(laid, cached, monkeypatch):
    """Before each file is read its pages are dropped: a sweep that reads the cache does not find what the disk lost."""
    advice = []
    monkeypatch.setattr(os, "posix_fadvise", lambda fd, offset, length, what: advice.append(what))
    store = Store(FilesystemDriver("main", FilesystemConfig(root=laid, verify_cached=cached)))
    assert {each.verdict.value for each in store.verify_objects(wanted())} == {"verified"}
    assert advice.count(os.POSIX_FADV_DONTNEED) == (0 if cached else 2 * COUNT)


@pytest.mark.parametrize("lists", [True, False], ids=["lists attributes", "refuses to list"])
def test_each_file_has_its_own_digest_beside_it(laid, monkeypatch, lists):
    """Whether in an attribute, in a sidecar or nowhere: what the file before had says nothing about the next one."""

    def refuse(_fd):
        raise PermissionError

    if not lists:
        monkeypatch.setattr(os, "listxattr", refuse)
    asked, kept = list(wanted()), []
    for number, (bucket, key, expected) in enumerate(asked):
        path, fits = laid / bucket / key, number % 2 == 0
        digest = expected.sha256 if fits else "0" * 64
        if (number // 2) % 3 == 0:
            with path.open("rb") as file:
                if not write_digest(file.fileno(), digest):
                    pytest.skip("the disk has no room for attributes")
        elif (number // 2) % 3 == 1:
            path.with_name(f"{path.name}.sha256").write_text(digest)
        else:
            digest = ""
        kept.append(digest)
    store = Store(FilesystemDriver("main", FilesystemConfig(root=laid)))
    assert [each.stored_sha256 for each in store.verify_objects(asked)] == kept
