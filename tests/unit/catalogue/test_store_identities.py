"""The catalogue knows which store was used under a name, so that a new machine knows it too."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conformance.bodies import source
from tests.memory_driver import MemoryDriver
from tests.waiting import WITHIN
from worker.catalogue import Catalogue
from worker.storage import Capabilities, FilesystemConfig, Store, Stores, Verdict
from worker.storage.errors import NotFound, OtherStore, SameStore
from worker.storage.identity import MARKER_KEY, Identity, place_of
from worker.storage.keys import MARKER_BUCKET

DATA = b"bytes"


def _machine(catalogue: Catalogue, **roots: Path) -> Stores:
    configs = {name: FilesystemConfig(root=root) for name, root in roots.items()}
    return Stores(configs, known_ids=catalogue.store_identities(configs))


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    (tmp_path / "disk").mkdir()
    return tmp_path / "disk"


def test_a_new_machine_writes_nothing_into_an_unmounted_mount_point(catalogue, tmp_path, disk):
    """A store that one machine has used is refused on another whose disk is not mounted, and nothing is made there."""
    _machine(catalogue, disk=disk)["disk"].write_object("b", "k", source(DATA))
    empty = tmp_path / "mount-point"
    empty.mkdir()
    store = _machine(catalogue, disk=empty)["disk"]
    with pytest.raises(OtherStore, match="its marker is gone.*stores accept disk"):
        store.write_object("b", "k", source(DATA))
    assert list(empty.iterdir()) == []
    (other := tmp_path / "other").mkdir()
    _machine(catalogue, disk=disk, other=other)["other"].write_object("b", "k", source(DATA))
    with pytest.raises(OtherStore, match="it has the marker .*, which is that of the store other"):
        _machine(catalogue, disk=other)["disk"].write_object("b", "k", source(DATA))


def test_a_store_that_is_renamed_while_its_disk_is_away_is_no_new_one(catalogue, tmp_path, disk):
    """Its empty mount point gets no marker by the new name either, until the disk is back or a new one is accepted."""
    away = tmp_path / "away"
    _machine(catalogue, old=disk)["old"].write_object("b", "k", source(DATA))
    disk.rename(away)
    disk.mkdir()
    new = _machine(catalogue, new=disk)["new"]
    for use in (lambda: new.write_object("b", "k", source(DATA)), lambda: new.read_object("b", "k")):
        with pytest.raises(OtherStore, match="new: the store old was here .*its marker is gone.*stores accept new"):
            use()
    assert list(disk.iterdir()) == []
    disk.rmdir()
    disk.symlink_to(away)
    new.write_object("b", "k2", source(DATA))
    disk.unlink()
    disk.mkdir()
    identities = catalogue.store_identities(["newest"])
    newest = _machine(catalogue, newest=disk)["newest"]
    with pytest.raises(OtherStore, match="its marker is gone"):
        newest.write_object("b", "k", source(DATA))
    identities.forget("newest", place_of(FilesystemConfig(root=disk)))
    newest.write_object("b", "k", source(DATA))


def test_a_new_disk_that_a_running_worker_records_has_its_place(catalogue, tmp_path, disk):
    """A store whose new disk was accepted while a worker ran is no new one either when it is renamed without it."""
    old = _machine(catalogue, old=disk)["old"]
    old.write_object("b", "k", source(DATA))
    disk.rename(tmp_path / "broken")
    disk.mkdir()
    catalogue.store_identities(["old"]).forget("old", place_of(FilesystemConfig(root=disk)))
    old.write_object("b", "k", source(DATA))
    disk.rename(tmp_path / "away")
    disk.mkdir()
    with pytest.raises(OtherStore, match="its marker is gone.*stores accept new"):
        _machine(catalogue, new=disk)["new"].write_object("b", "k", source(DATA))
    assert list(disk.iterdir()) == []


def test_two_machines_that_begin_at_once_keep_one_of_two_disks(catalogue, tmp_path, disk):
    """The first id that is recorded counts; a machine that made another one at the same moment is refused."""
    other = tmp_path / "other"
    other.mkdir()
    known = catalogue.store_identities(["disk"])
    known.put("disk", "1" * 32)
    known.put("disk", "2" * 32)
    assert known.get("disk") == "1" * 32
    with pytest.raises(OtherStore):
        _machine(catalogue, disk=other)["disk"].write_object("b", "k", source(DATA))


class _Unconditional(MemoryDriver):
    """A store that keeps the last of two writes, and whose first write of a marker waits for a second one."""

    def __init__(self, *, patience: float = WITHIN) -> None:
        """Wait at most `patience` seconds for the second write."""
        super().__init__("s3")
        self._patience = patience
        self._begun = threading.Barrier(2)
        self.markers = 0

    @property
    def capabilities(self) -> Capabilities:
        return replace(super().capabilities, conditional_writes=False)

    def put(self, bucket, key, body, info, *, condition=None):
        if key == MARKER_KEY:
            self.markers += 1
            if self.markers <= self._begun.parties:
                with suppress(threading.BrokenBarrierError):
                    self._begun.wait(self._patience)
        return super().put(bucket, key, body, info, condition=condition)

    def marker(self) -> str:
        """Return the id in the marker."""
        with self.open(MARKER_BUCKET, MARKER_KEY) as reader:
            return reader.read(1024).decode().split()[1]


def test_processes_that_begin_at_once_agree_on_one_marker(catalogue, tmp_path):
    """Also where a store cannot refuse a second marker, the recorded id is that of its marker in the end."""
    driver, known = _Unconditional(), catalogue.store_identities(["s3"])

    def begin(key: str) -> None:
        Store(driver, identity=Identity(driver, known)).write_object("b", key, source(DATA))

    with ThreadPoolExecutor(2) as processes:
        for done in [processes.submit(begin, "one"), processes.submit(begin, "two")]:
            done.result(WITHIN)
    assert driver.marker() == known.get("s3")


def test_threads_that_begin_at_once_make_one_marker(catalogue, tmp_path):
    """Threads of one process that all miss the marker write it once, and none of them is refused."""
    driver, known = _Unconditional(patience=0.3), catalogue.store_identities(["s3"])
    store = Store(driver, identity=Identity(driver, known))

    def write(number: int) -> None:
        store.write_object("b", f"{number}", source(DATA))

    with ThreadPoolExecutor(8) as threads:
        for done in [threads.submit(write, number) for number in range(8)]:
            done.result(WITHIN)
    assert driver.markers == 1
    assert driver.marker() == known.get("s3")


def test_a_store_that_was_replaced_is_accepted_by_name(catalogue, tmp_path, disk):
    """After its record is forgotten the disk that is there is used, and recorded for every machine."""
    _machine(catalogue, disk=disk)["disk"].write_object("b", "k", source(DATA))
    new = tmp_path / "new"
    new.mkdir()
    assert catalogue.store_identities(["disk"]).forget("disk")
    store = _machine(catalogue, disk=new)["disk"]
    store.write_object("b", "k2", source(DATA))
    with pytest.raises(NotFound):
        store.read_object("b", "k")
    with pytest.raises(OtherStore, match="it has the marker"):
        _machine(catalogue, disk=disk)["disk"].write_object("b", "k", source(DATA))


def test_a_name_that_takes_the_disk_of_a_store_makes_it_accept_no_other_one(catalogue, tmp_path, disk):
    """The store that was there first keeps its record: it is refused on another disk until that is accepted by name."""
    old = tmp_path / "old"
    old.mkdir()
    _machine(catalogue, first=disk)["first"].write_object("b", "k", source(DATA))
    _machine(catalogue, gone=old)["gone"].write_object("b", "k", source(DATA))
    catalogue.store_identities(["gone"]).forget("gone")
    stores = _machine(catalogue, first=old, gone=disk)
    assert stores["gone"].verify_object("b", "k").verdict == Verdict.VERIFIED
    with pytest.raises(SameStore):
        stores["gone"].write_object("b", "new", source(DATA))
    with pytest.raises(OtherStore, match="stores accept first"):
        stores["first"].delete_object("b", "k")
    catalogue.store_identities(["first"]).forget("first")
    for store in (stores["first"], stores["gone"]):
        store.write_object("b", "new", source(DATA))
