"""Test that one physical place is never two stores, and that another disk is never taken for the store."""

import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.bodies import source
from tests.known_id_files import KnownIdFiles
from tests.memory_driver import MemoryDriver, MemoryReader
from tests.waiting import WITHIN
from worker import clock
from worker.settings import SettingsError, load_settings
from worker.storage import (
    AzureConfig,
    FilesystemConfig,
    GcsConfig,
    ObjectStat,
    S3Config,
    StaleUpload,
    Store,
    StoreConfig,
    Stores,
    Verdict,
)
from worker.storage.driver import WriteInfo
from worker.storage.errors import OtherStore, SameStore, Timeout, Unavailable
from worker.storage.identity import Identity
from worker.storage.integrity.verifying_reader import VerifyingReader
from worker.storage.same_place import Mount, overlapping

DATA = b"bytes"
_OVERLAY = (
    "mount -t tmpfs none memory && mkdir memory/upper memory/work && mount -t overlay none outer"
    ' -o "userxattr,lowerdir=$PWD/elsewhere,upperdir=$PWD/memory/upper,workdir=$PWD/memory/work"'
)


def _stores(run: Path, **roots: Path) -> Stores:
    run.mkdir(exist_ok=True)
    configs: dict[str, StoreConfig] = {name: FilesystemConfig(root=root) for name, root in roots.items()}
    return Stores(configs, known_ids=KnownIdFiles(run, configs))


def _pairs(configs: Mapping[str, StoreConfig]) -> list[tuple[str, str]]:
    return [(one, two) for one, two, _ in overlapping(configs)]


@pytest.mark.parametrize("inner", [".", "b", "b/c"])
def test_one_root_in_or_at_another_is_one_place(tmp_path: Path, inner: str) -> None:
    """A root that is another store's root, or is inside it, is found from the configuration, also through a link."""
    (tmp_path / "one").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "one", target_is_directory=True)
    other = tmp_path / "one-more"
    configs: dict[str, StoreConfig] = {
        "a": FilesystemConfig(root=tmp_path / "one"),
        "b": FilesystemConfig(root=link / inner),
        "c": FilesystemConfig(root=other),
    }
    assert _pairs(configs) == [("a", "b")]


def test_a_bind_mount_is_one_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory that is mounted a second time elsewhere is found from the table of mounts."""
    table = [("/", "8:1", "/"), ("/mnt/again", "8:1", "/srv/artifacts/inner"), ("/mnt/other", "8:2", "/")]
    monkeypatch.setattr("worker.storage.same_place.mounts_here", lambda: [Mount(*row) for row in table])
    configs: dict[str, StoreConfig] = {
        "a": FilesystemConfig(root=Path("/srv/artifacts")),
        "b": FilesystemConfig(root=Path("/mnt/again")),
        "c": FilesystemConfig(root=Path("/mnt/other/srv/artifacts")),
    }
    assert _pairs(configs) == [("a", "b")]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("/srv/artifacts", "/srv/artifacts/disk"),
        ("/srv/artifacts", "/mnt/disk"),
        ("/srv/artifacts", "/mnt/disk/shared/team"),
        ("/srv/artifacts", "/mnt"),
        ("/srv/artifacts", "/srv/others"),
    ],
    ids=["at_the_mount", "where_it_is_mounted_too", "below_what_is_mounted", "around_it", "mounted_inside_both"],
)
def test_what_is_mounted_inside_a_root_is_part_of_it(monkeypatch: pytest.MonkeyPatch, first: str, second: str) -> None:
    """A disk, or a part of one, that is mounted inside a root is found there from both stores."""
    table = [
        ("/", "8:1", "/"),
        ("/mnt/disk", "8:2", "/"),
        ("/srv/artifacts/disk", "8:2", "/shared"),
        ("/srv/others/a/b/c/d/e", "8:2", "/shared/team"),
    ]
    monkeypatch.setattr("worker.storage.same_place.mounts_here", lambda: [Mount(*row) for row in table])
    for one, two in ((first, second), (second, first)):
        configs: dict[str, StoreConfig] = {
            "a": FilesystemConfig(root=Path(one)),
            "b": FilesystemConfig(root=Path(two)),
            "c": FilesystemConfig(root=Path("/mnt2")),
        }
        assert _pairs(configs) == [("a", "b")]


@pytest.mark.parametrize(
    ("mount", "first", "second"),
    [
        ("mount --bind elsewhere outer/in/side", "outer", "elsewhere/deep"),
        (_OVERLAY, "outer", "elsewhere"),
        (_OVERLAY, "outer/deep", "elsewhere"),
        (_OVERLAY, "outer", "elsewhere/deep"),
        (_OVERLAY, "outer/deep", "memory/upper"),
        (f"{_OVERLAY} && mount --bind outer/deep outer/in", "outer/in", "elsewhere/deep"),
    ],
    ids=["bound", "lower", "around_a_lower", "in_a_lower", "upper", "bound_from_an_overlay"],
)
def test_a_mounted_directory_is_found_on_a_real_system(tmp_path: Path, mount: str, first: str, second: str) -> None:
    """What a root shows of another one is found from both stores, in the kernel's own table of mounts.

    That is a directory that is bound into it, or a layer of an overlay, whose files are there until they are changed.
    """
    for name in ("outer/in/side", "elsewhere/deep", "elsewhere/in", "memory"):
        (tmp_path / name).mkdir(parents=True)
    program = (
        "import sys; from pathlib import Path; from worker.storage import FilesystemConfig as C;"
        "from worker.storage.same_place import overlapping;"
        "a, b = (C(root=Path(p)) for p in sys.argv[1:]);"
        "print(len([*overlapping({'a': a, 'b': b}), *overlapping({'b': b, 'a': a})]))"
    )
    mounted = f'{mount} && exec "{sys.executable}" -c "$0" "$1" "$2"'
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mounted, program]
    if subprocess.run([*command[:4], "sh", "-c", mount], cwd=tmp_path, check=False).returncode:
        pytest.skip("this user cannot mount that")
    found = subprocess.run(
        [*command, str(tmp_path / first), str(tmp_path / second)], cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert found.stdout.strip() == "2"


def test_names_that_a_disk_does_not_tell_apart_are_one_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two spellings of one directory are found by the directory itself, also where one root is inside the other."""
    inner = tmp_path / "Data" / "b"
    inner.mkdir(parents=True)
    real = Path.stat

    def folding(path: Path, **options: bool) -> os.stat_result:
        return real(Path(str(path).replace("data", "Data")), **options)

    monkeypatch.setattr(Path, "stat", folding)
    for first, second in (("Data", "data"), ("Data", "data/b"), ("data/b", "Data")):
        configs = {name: FilesystemConfig(root=tmp_path / root) for name, root in (("a", first), ("b", second))}
        assert _pairs(configs) == [("a", "b")]


def test_two_spellings_of_one_bucket_are_one_place() -> None:
    """The same bucket of the same endpoint is one place, whatever the spelling of the endpoint."""
    azure = "DefaultEndpointsProtocol=https;AccountName=acc;AccountKey=eA==;EndpointSuffix=core.windows.net"
    configs = {
        "s1": S3Config(bucket="b", endpoint="http://Store.example:80"),
        "s2": S3Config(bucket="b", endpoint="http://store.example/", region="eu-west-1"),
        "s3": S3Config(bucket="other", endpoint="http://store.example"),
        "s4": S3Config(bucket="b"),
        "s5": S3Config(bucket="b", endpoint="https://s3.eu-west-1.amazonaws.com", region="eu-west-1"),
        "s6": S3Config(bucket="b", endpoint="https://s3.us-gov-west-1.amazonaws.com"),
        "v6": S3Config(bucket="b", endpoint="http://[2001:DB8::1]:9000"),
        "v7": S3Config(bucket="b", endpoint="http://[2001:db8:0::1]:9000/"),
        "g1": GcsConfig(bucket="b"),
        "g2": GcsConfig(bucket="b", storage_class="NEARLINE", endpoint="https://storage.googleapis.com"),
        "g3": S3Config(bucket="b", endpoint="https://storage.europe-west3.rep.googleapis.com"),
        "g4": S3Config(bucket="other", endpoint="https://storage.googleapis.com"),
        "a1": AzureConfig(container="b", account_url="https://acc.blob.core.windows.net"),
        "a2": AzureConfig.model_validate({"container": "b", "connection_string": azure}),
        "a3": AzureConfig(container="b", account_url="https://acc2.blob.core.windows.net"),
    }
    google = [("g1", "g2"), ("g1", "g3"), ("g2", "g3")]
    assert _pairs(configs) == [("s1", "s2"), ("s4", "s5"), ("v6", "v7"), *google, ("a1", "a2")]


def test_the_settings_refuse_one_place_with_both_names(tmp_path: Path) -> None:
    """Settings with two stores in one place do not load, and the error names both."""
    stores = {"disk": {"root": str(tmp_path / "a")}, "again": {"root": str(tmp_path / "a" / "b")}}
    for store in stores.values():
        store["type"] = "filesystem"
    with pytest.raises(SettingsError, match="disk and again are one physical place .*: remove one of them"):
        load_settings(home=tmp_path / "home", stores=stores)


@pytest.mark.parametrize("root", ["/", ".", "home", "home/run/x", "home/spool"])
def test_a_root_around_or_inside_the_data_directory_is_refused(tmp_path: Path, root: str) -> None:
    """A store's root contains no data directory, and is none of the directories that the worker uses itself."""
    store = {"type": "filesystem", "root": str(tmp_path / root)}
    with pytest.raises(SettingsError, match=r"stores\.disk\.root"):
        load_settings(home=tmp_path / "home", stores={"disk": store})


@pytest.mark.parametrize("root", [".", "home/run", "home/staging"])
def test_a_source_root_around_or_inside_the_data_directory_is_refused(tmp_path: Path, root: str) -> None:
    """No service can upload the catalogue, the broker's password or a file that is staged for another job."""
    with pytest.raises(SettingsError, match=r"sources\.roots"):
        load_settings(home=tmp_path / "home", sources={"roots": [str(tmp_path / root)]})


def test_a_place_with_two_names_takes_no_write_and_no_delete(tmp_path: Path) -> None:
    """What no configuration shows is found by the marker: both stores refuse writes and deletes, and can be read.

    A read before them makes no difference.
    """
    root = tmp_path / "root"
    root.mkdir()
    first = _stores(tmp_path / "run", one=root)["one"]
    first.write_object("b", "k", source(DATA))
    stores = _stores(tmp_path / "run", one=root, two=root)
    for store in stores.values():
        assert store.verify_object("b", "k").verdict == Verdict.VERIFIED
    for name in ("two", "one"):
        with pytest.raises(SameStore, match=r"one.*two|two.*one"):
            stores[name].write_object("b", "other", source(DATA))
        with pytest.raises(SameStore):
            stores[name].delete_object("b", "k")
        assert stores[name].verify_object("b", "k").verdict == Verdict.VERIFIED


def test_two_clients_of_one_bucket_are_found_by_its_marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The marker is an object, so that two endpoints of one bucket show the same one, in several reads perhaps."""
    read = MemoryReader.read
    monkeypatch.setattr(MemoryReader, "read", lambda reader, size: read(reader, min(size, 10)))
    driver = MemoryDriver("one")
    known = KnownIdFiles(tmp_path, {"one": None, "two": None})
    Store(driver, identity=Identity(driver, known)).write_object("b", "k", source(DATA))
    other = MemoryDriver("two")
    other._buckets = driver._buckets
    with pytest.raises(SameStore, match="two and one"):
        Store(other, identity=Identity(other, known)).write_object("b", "k", source(DATA))


def test_a_store_can_be_pointed_elsewhere_after_it_was_refused(tmp_path: Path) -> None:
    """Once the settings name another root for one of the two stores, both are used again."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    _stores(tmp_path / "run", one=tmp_path / "a")["one"].write_object("b", "k", source(DATA))
    with pytest.raises(SameStore):
        _stores(tmp_path / "run", one=tmp_path / "a", two=tmp_path / "a")["two"].delete_object("b", "k")
    stores = _stores(tmp_path / "run", one=tmp_path / "a", two=tmp_path / "b")
    stores["two"].write_object("b", "k", source(DATA))
    stores["one"].write_object("b", "k", source(DATA))


def test_reads_of_a_store_without_a_marker_look_for_it_once(tmp_path: Path) -> None:
    """A page of copies that another program wrote costs one search for a marker; a write still makes one."""
    asked: list[str] = []

    class Known(KnownIdFiles):
        def get(self, name: str) -> str | None:
            asked.append(name)
            return super().get(name)

    configs: dict[str, StoreConfig] = {"main": FilesystemConfig(root=tmp_path / "main")}
    run, bucket = tmp_path / "run", tmp_path / "main" / "releases"
    run.mkdir()
    bucket.mkdir(parents=True)
    (bucket / "app.tgz").write_bytes(DATA)
    store = Stores(configs, known_ids=Known(run, configs))["main"]
    for _ in range(3):
        store.stat_object("releases", "app.tgz")
    assert len(asked) == 1
    store.write_object("releases", "new.tgz", source(DATA))
    assert Known(run, configs).get("main") is not None


USES: tuple[Callable[[Store], object], ...] = (
    lambda store: list(store.list_objects("b")),
    lambda store: store.create_bucket("b"),
    lambda store: list(store.iter_stale_uploads()),
    lambda store: store.remove_stale_upload(StaleUpload("an upload", clock.now(), ("b", "k", "token"))),
    lambda store: store.abort_upload("b", "k", "token"),
    lambda store: store.set_hold("b", "k", held=True),
)


def test_a_store_that_takes_no_marker_can_be_adopted_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that is only read may refuse a write in any way; its marker is made at the first write that it takes."""
    writes: list[str] = []

    class ReadOnly(MemoryDriver):
        def put(self, bucket: str, key: str, *args: Any, **kwargs: Any) -> ObjectStat:
            writes.append(bucket)
            if len(writes) > 2:
                return super().put(bucket, key, *args, **kwargs)
            raise Unavailable("old: Internal Error (InternalError)")

    monkeypatch.setattr("worker.storage.identity._UNMARKED_SECONDS", WITHIN)
    driver = ReadOnly("old")
    MemoryDriver.put(driver, "b", "k", VerifyingReader(io.BytesIO(DATA)), WriteInfo(len(DATA), "0" * 64))
    store = Store(driver, identity=Identity(driver, KnownIdFiles(tmp_path, ["old"])))
    for _ in range(3):
        assert store.stat_object("b", "k", as_copy=True).size == len(DATA)
    assert writes == ["zot-store"]
    with pytest.raises(Unavailable):
        store.write_object("b", "k2", source(DATA))
    store.write_object("b", "k2", source(DATA))
    assert writes == ["zot-store", "zot-store", "zot-store", "b"]


def test_an_unmounted_disk_takes_no_write_and_misses_nothing(tmp_path: Path) -> None:
    """Where the marker is gone nothing is written, and a copy is unreadable and not missing."""
    root, disk = tmp_path / "root", tmp_path / "disk"
    root.mkdir()
    store = _stores(tmp_path / "run", one=root)["one"]
    store.write_object("b", "k", source(DATA))
    root.rename(disk)
    root.mkdir()  # the directory that the disk was mounted on
    for opened in (store, _stores(tmp_path / "run", one=root)["one"]):
        with pytest.raises(OtherStore, match="its marker is gone.*rm .*run/identity-one"):
            opened.write_object("b", "k2", source(DATA))
        assert opened.verify_object("b", "k").verdict == Verdict.UNREADABLE
        for use in USES:
            with pytest.raises(OtherStore):
                use(opened)
    assert list(root.iterdir()) == []
    root.rmdir()
    disk.rename(root)
    store.write_object("b", "k2", source(DATA))


def test_another_disk_is_refused_until_its_record_is_removed(tmp_path: Path) -> None:
    """A disk with another store's marker is refused; removing the record that the error names accepts it."""
    first, second, root = tmp_path / "first", tmp_path / "second", tmp_path / "root"
    for directory in (first, second):
        directory.mkdir()
    _stores(tmp_path / "other", one=second)["one"].write_object("b", "k", source(DATA))
    root.symlink_to(first)
    _stores(tmp_path / "run", one=root)["one"].write_object("b", "k", source(DATA))
    root.unlink()
    root.symlink_to(second)
    store = _stores(tmp_path / "run", one=root)["one"]
    with pytest.raises(OtherStore, match="it has the marker"):
        store.delete_object("b", "k")
    (tmp_path / "run" / "identity-one").unlink()
    assert store.delete_object("b", "k")


def test_one_share_that_is_mounted_twice_is_found_inside_the_other(tmp_path: Path) -> None:
    """Where no configuration shows that one root is inside another, the markers show it, from both stores."""
    outer = tmp_path / "outer"
    inner = outer / "team" / "artifacts"
    inner.mkdir(parents=True)
    aside = tmp_path / "aside"
    aside.mkdir()
    other = tmp_path / "the-same-by-another-mount"
    (other / "zot-store").mkdir(parents=True)
    inner_store = _stores(tmp_path / "inner", two=other, one=outer)["two"]
    inner_store.write_object("b", "k", source(DATA))
    (inner / "zot-store").mkdir()
    (inner / "zot-store" / "identity").write_bytes((other / "zot-store" / "identity").read_bytes())
    with pytest.raises(SameStore, match="two and one are one physical place") as caught:
        inner_store.check_identity("write")
    assert caught.value.other is None  # `b/k` of one and of the other are two files
    with pytest.raises(SameStore, match="one and two are one physical place"):
        _stores(tmp_path / "inner", two=other, one=outer)["one"].check_identity("write")
    shutil.rmtree(inner / "zot-store")
    shutil.rmtree(outer / "zot-store", ignore_errors=True)
    _stores(tmp_path / "run", one=outer)["one"].write_object("b", "k", source(DATA))
    with pytest.raises(SameStore, match="two and one are one physical place"):
        _stores(tmp_path / "run", one=aside, two=inner)["two"].write_object("b", "k", source(DATA))
    _stores(tmp_path / "other", two=inner)["two"].write_object("b", "k", source(DATA))
    with pytest.raises(SameStore, match="one and two are one physical place"):
        _stores(tmp_path / "other", one=outer, two=aside)["one"].write_object("b", "k", source(DATA))


def test_a_copy_of_a_store_is_one_of_its_own_once_its_marker_is_removed(tmp_path: Path) -> None:
    """Both are refused until then; the original is not refused for what the copy had, nor is the copy."""
    original, twin = tmp_path / "original", tmp_path / "twin"
    original.mkdir()
    _stores(tmp_path / "run", original=original)["original"].write_object("b", "k", source(DATA))
    shutil.copytree(original, twin)
    for name in ("twin", "original"):
        of = _stores(tmp_path / "run", original=original, twin=twin)[name]
        assert of.object_exists("b", "k")
        with pytest.raises(SameStore, match="are one physical place"):  # as `stores` tells it
            of.check_identity("read")
        with pytest.raises(SameStore, match="if one was made as a copy of the other, remove zot-store/identity"):
            of.write_object("b", "k2", source(DATA))
    (twin / "zot-store" / "identity").unlink()
    _stores(tmp_path / "run", original=original, twin=twin)["original"].write_object("b", "k2", source(DATA))
    with pytest.raises(OtherStore, match="its marker is gone.*rm .*run/identity-twin"):
        _stores(tmp_path / "run", original=original, twin=twin)["twin"].write_object("b", "k2", source(DATA))
    (tmp_path / "run" / "identity-twin").unlink()
    for name in ("original", "twin"):
        _stores(tmp_path / "run", original=original, twin=twin)[name].write_object("b", "k2", source(DATA))


def test_a_refused_store_whose_disk_is_not_mounted_takes_no_write(tmp_path: Path) -> None:
    """Where the second of two stores that are one place loses its mount, the mount point is no store, also for reads.

    Neither is another disk there, until its record is removed.
    """
    root, mounted, unmounted, other = (tmp_path / name for name in ("root", "mounted", "unmounted", "other"))
    for directory in (root, unmounted, other):
        directory.mkdir()
    _stores(tmp_path / "elsewhere", one=other)["one"].write_object("b", "k", source(DATA))
    mounted.symlink_to(root)
    _stores(tmp_path / "run", one=root)["one"].write_object("b", "k", source(DATA))
    stores = _stores(tmp_path / "run", one=root, two=mounted)
    with pytest.raises(SameStore):
        stores["two"].write_object("b", "k", source(DATA))
    for place, wrong in ((unmounted, "its marker is gone"), (other, "it has the marker")):
        mounted.unlink()
        mounted.symlink_to(place)
        for two in (stores["two"], _stores(tmp_path / "run", one=root, two=mounted)["two"]):
            assert two.verify_object("b", "k").verdict == Verdict.UNREADABLE
            with pytest.raises(OtherStore, match=f"{wrong}.*rm .*run/identity-two"):
                two.write_object("b", "k2", source(DATA))
    assert list(unmounted.iterdir()) == []
    (tmp_path / "run" / "identity-two").unlink()
    for store in stores.values():
        store.write_object("b", "k2", source(DATA))


def test_a_root_inside_a_directory_that_a_server_gives_out_is_found_by_both(tmp_path: Path) -> None:
    """A store of the server finds its marker above the root of the other store, which finds it there too."""
    root = tmp_path / "served" / "in" / "side"
    root.mkdir(parents=True)
    configs: dict[str, StoreConfig] = {
        "gate": S3Config(bucket="served", endpoint="http://store.example"),
        "disk": FilesystemConfig(root=root),
    }
    driver = MemoryDriver("gate")
    gate = Store(driver, identity=Identity(driver, KnownIdFiles(tmp_path, configs), configs=configs))
    gate.check_identity("write")
    (tmp_path / "served" / "zot-store").mkdir()
    marker = b"".join(Store(driver).read_object("zot-store", "identity"))
    (tmp_path / "served" / "zot-store" / "identity").write_bytes(marker)
    with pytest.raises(SameStore, match="gate and disk are one physical place"):
        gate.check_identity("write")
    with pytest.raises(SameStore, match="disk and gate are one physical place"):
        Stores(configs, known_ids=KnownIdFiles(tmp_path, configs))["disk"].write_object("b", "k", source(DATA))


def test_a_bucket_that_another_store_names_is_one_place() -> None:
    """A store with a bucket for each logical one, and a store of one of these buckets, would count one object twice."""
    configs = {
        "all": S3Config(layout="native", buckets=("team-*",), endpoint="http://store.example"),
        "inside": S3Config(bucket="team-a", endpoint="http://store.example:80"),
        "beside": S3Config(bucket="other", endpoint="http://store.example"),
        "elsewhere": S3Config(bucket="team-a", endpoint="http://store2.example"),
        "google": S3Config(layout="native", buckets=("team-*",), endpoint="https://storage.googleapis.com"),
        "in_google": GcsConfig(bucket="team-a"),
    }
    assert _pairs(configs) == [("all", "inside"), ("google", "in_google")]


def test_the_bucket_of_another_store_is_no_logical_bucket(tmp_path: Path) -> None:
    """A store with a real bucket for each logical one uses none that another store has, whatever its address."""
    one = {"layout": "native", "reserved_bucket": "reserved", "endpoint": "http://store.example"}
    configs: dict[str, StoreConfig] = {
        "all": S3Config.model_validate(one),
        "same": S3Config(bucket="artifacts", endpoint="http://store.example:80"),
        "alias": S3Config(bucket="team", endpoint="http://10.0.0.1"),
        "elsewhere": S3Config(bucket="other", endpoint="http://10.0.0.2"),
        "disk": FilesystemConfig(root=tmp_path / "given-out" / "served"),
        "google": GcsConfig(bucket="shown", endpoint="http://10.0.0.3"),
    }
    assert _pairs(configs) == []
    known = KnownIdFiles(tmp_path, configs)
    known.put("disk", "c" * 32)
    known.put("google", "d" * 32)
    known.put("alias", "a" * 32)
    known.put("elsewhere", "b" * 32)
    driver = MemoryDriver("all")
    for bucket, letter in (("team", b"a"), ("served", b"c"), ("shown", b"d")):
        Store(driver).write_object(bucket, "zot-store/identity", io.BytesIO(b"zot-store " + letter * 32 + b"\n"))
    Store(driver).write_object("artifacts", "rel/a", source(DATA))
    store = Store(driver, identity=Identity(driver, known, configs=configs))
    for bucket, name in (("artifacts", "same"), ("team", "alias"), ("served", "disk"), ("shown", "google")):
        for use in (
            lambda at: store.write_object(at, "rel/a", source(DATA)),
            lambda at: store.delete_object(at, "rel/a"),
            lambda at: store.read_object(at, "rel/a"),
            lambda at: list(store.list_objects(at)),
        ):
            with pytest.raises(SameStore, match=f"the bucket {bucket} is that of the store {name}"):
                use(bucket)
    store.write_object("other", "rel/a", source(DATA))


def test_a_marker_that_cannot_be_read_now_is_read_again(tmp_path: Path) -> None:
    """A store that does not answer the check of a bucket in time fails that use, and the next use is checked."""

    class Slow(MemoryDriver):
        answers = False

        def open(self, bucket: str, key: str, **options: Any) -> Any:
            if (bucket, key) == ("team", "zot-store/identity") and not self.answers:
                raise Timeout("all: no answer in time")
            return super().open(bucket, key, **options)

    configs: dict[str, StoreConfig] = {
        "all": S3Config(layout="native", reserved_bucket="reserved", endpoint="http://store.example"),
        "alias": S3Config(bucket="team", endpoint="http://10.0.0.1"),
    }
    known = KnownIdFiles(tmp_path, configs)
    known.put("alias", "a" * 32)
    driver = Slow("all")
    Store(driver).write_object("team", "zot-store/identity", io.BytesIO(b"zot-store " + b"a" * 32 + b"\n"))
    store = Store(driver, identity=Identity(driver, known, configs=configs))
    with pytest.raises(Timeout):
        store.write_object("team", "rel/a", source(DATA))
    driver.answers = True
    with pytest.raises(SameStore):
        store.write_object("team", "rel/a", source(DATA))


def test_a_foreign_object_in_the_place_of_the_marker_is_kept(tmp_path: Path) -> None:
    """An object that is no marker is reported and not replaced."""
    driver = MemoryDriver("one")
    Store(driver).write_object("zot-store", "identity", io.BytesIO(b"of another program"))
    store = Store(driver, identity=Identity(driver, KnownIdFiles(tmp_path, {"one": None})))
    with pytest.raises(OtherStore, match="zot-store/identity is no marker"):
        store.write_object("b", "k", source(DATA))
    with Store(driver).read_object("zot-store", "identity") as reader:
        assert b"".join(reader) == b"of another program"
