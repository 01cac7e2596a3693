"""`sweep oci`, `bagit`, `ocfl` and `sha256sums` need no catalogue, and their exit status tells what they found."""

import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from worker import cli, clock
from worker.catalogue import Catalogue, Pauses, Scope
from worker.settings import load_settings
from worker.storage import Store
from worker.storage.errors import Unavailable


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the bucket of a store that another program has filled, as user without a data directory."""
    there = tmp_path / "nas" / "there"
    there.mkdir(parents=True)
    config = tmp_path / "zot.yaml"
    config.write_text(yaml.safe_dump({"stores": {"nas": {"type": "filesystem", "root": str(tmp_path / "nas")}}}))
    monkeypatch.setenv("ZOT_CONFIG", str(config))
    monkeypatch.setenv("ZOT_HOME", str(tmp_path / "home"))
    for name, data in {"a": b"one", "b": b"two"}.items():
        (there / name).write_bytes(data)
    (there / "SHA256SUMS").write_text(
        "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in {"a": b"one", "b": b"two"}.items())
    )
    return there


def test_the_exit_status_and_the_document_tell_what_is_wrong(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """0 if nothing is wrong, else 1, with every fault by kind and key; no catalogue is made and no file written."""
    before = sorted(root.parent.rglob("*"))
    assert cli.run(["sweep", "sha256sums", "nas", "there", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["read"], document["bytes"], document["recorded"], document["faults"]) == (2, 6, False, [])
    (root / "b").write_bytes(b"too")
    assert cli.run(["sweep", "sha256sums", "nas", "there/", "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["counts"] == {"corrupt": 1}
    assert [(each["kind"], each["key"]) for each in document["faults"]] == [("corrupt", "b")]
    assert cli.run(["sweep", "sha256sums", "--store", "nas", "--prefix", "there"]) == 1
    shown = capsys.readouterr()
    assert "corrupt: there/b" in shown.err
    assert "1 list, 3 objects listed, 2 read in full (6 B)" in shown.out
    with (root / "SHA256SUMS").open("a") as sums:
        sums.write(f"\\{'0' * 64}  new\\n  line\n")
    assert cli.run(["sweep", "sha256sums", "nas", "there"]) == 1
    assert r"missing: there/new\n  line: named by SHA256SUMS" in capsys.readouterr().err
    assert sorted(root.parent.rglob("*")) == before
    assert not (root.parents[1] / "home").exists()


def test_a_dry_run_reads_no_content(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It tells how much would be read, and what is gone."""
    (root / "b").write_bytes(b"too")
    assert cli.run(["sweep", "sha256sums", "nas", "there", "--dry-run"]) == 0
    assert "2 would be read (6 B)" in capsys.readouterr().out
    (root / "a").unlink()
    assert cli.run(["sweep", "sha256sums", "nas", "there", "--dry-run"]) == 1


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (("oci",), 2),
        (("oci", "nas"), 2),
        (("oci", "nas", "there", "more"), 2),
        (("oci", "nowhere", "there"), 2),
        (("oci", "nas", "../there"), 2),
        (("oci", "nas", "there"), 1),
        (("bagit", "nas", "there/x"), 1),
        (("verify", "nas", "there"), 2),
    ],
)
def test_mistakes_are_told(root: Path, arguments: tuple[str, ...], status: int) -> None:
    """No store or place, an unknown store, an unsafe bucket, no such layout there; other sweeps take no place."""
    assert cli.run(["sweep", *arguments]) == status
    assert root.exists()


def test_an_object_that_cannot_be_read_is_no_rot(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exit status is 3 if the store did not return some bytes and all others are right."""
    from worker.storage.errors import AccessDenied
    from worker.storage.store import Store

    read = Store.read_object

    def denied(self: Store, bucket: str, key: str, **options: object) -> object:
        if key == "b":
            raise AccessDenied("nas: there/b: not allowed")
        return read(self, bucket, key)

    monkeypatch.setattr(Store, "read_object", denied)
    assert cli.run(["sweep", "sha256sums", "nas", "there"]) == 3
    (root / "a").write_bytes(b"rot")
    assert cli.run(["sweep", "sha256sums", "nas", "there"]) == 1


def test_the_bandwidth_limit_of_the_store_counts(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All bytes that are read are taken from it, whatever process reads them."""
    config = Path(os.environ["ZOT_CONFIG"])
    stores = yaml.safe_load(config.read_text())
    config.write_text(yaml.safe_dump(stores | {"store_limits": {"nas": {"bytes_per_second": "1MiB"}}}))
    data, files = b"x" * 1000, 40
    (root / "a").unlink()
    (root / "b").unlink()
    lines = []
    for number in range(files):
        (root / f"{number}").write_bytes(data)
        lines.append(f"{hashlib.sha256(data).hexdigest()}  {number}\n")
    (root / "SHA256SUMS").write_text("".join(lines))
    taken: list[tuple[str, int, int]] = []
    monkeypatch.setattr(
        "worker.limits.admission.BandwidthLimit.take",
        lambda _, name, count, *, limit, **__: taken.append((name, count, limit)),
    )
    assert cli.run(["sweep", "sha256sums", "nas", "there"]) == 0
    assert {(name, limit) for name, _, limit in taken} == {("nas", 1 << 20)}
    assert sum(count for _, count, _ in taken) >= files * len(data)


@pytest.fixture
def pauses(root: Path) -> Iterator[Pauses]:
    """Return the pauses in a catalogue that the command finds."""
    home = root.parents[1] / "home"
    home.mkdir()
    catalogue = Catalogue(load_settings().catalogue_url)
    yield catalogue.pauses
    catalogue.close()


@pytest.mark.parametrize("command", [("sweep", "sha256sums", "nas", "there"), ("catalogue", "rebuild")])
def test_a_paused_store_is_not_read(
    command: tuple[str, ...], pauses: Pauses, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exit status is 3, and the line has the reason and the way out."""
    monkeypatch.setattr(Store, "list_objects", lambda *_: pytest.fail("the store was asked"))
    pauses.begin(Scope.STORE, "nas", reason="new disks", now=clock.now())
    assert cli.run([*command]) == 3
    said = capsys.readouterr().err
    assert "nas: the store is paused: new disks; `zot-artifacts resume store nas` ends the pause" in said


def test_a_pause_in_the_middle_is_waited_for(
    root: Path, pauses: Pauses, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No object is read while it lasts; it is told once, and the sweep comes to its end after it."""
    monkeypatch.setattr("worker.limits.limited_store._ADMITTED_FOR", 0)
    read, asked = Store.read_object, list[str]()

    def pausing(self: Store, bucket: str, key: str, **options: object) -> object:
        asked.append(key)
        if key == "SHA256SUMS":
            pauses.begin(Scope.STORE, "nas", reason=None, now=clock.now())
        return read(self, bucket, key, **options)  # type: ignore[arg-type]

    def resumed(_: float) -> None:
        assert asked == ["SHA256SUMS"]
        pauses.end(Scope.STORE, "nas")

    monkeypatch.setattr(Store, "read_object", pausing)
    monkeypatch.setattr("worker.limits.store_wait.time", SimpleNamespace(sleep=resumed, monotonic=time.monotonic))
    assert cli.run(["sweep", "sha256sums", "nas", "there"]) == 0
    assert root.exists()
    assert sorted(asked) == ["SHA256SUMS", "a", "b"]
    assert capsys.readouterr().err.count("nas: the store is paused: waiting") == 1


def test_a_store_that_keeps_failing_gets_no_more_requests(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its circuit breaker opens after some failures, and no request follows."""
    monkeypatch.setattr("worker.limits.store_wait._PATIENCE", 0)
    monkeypatch.setattr("worker.limits.store_wait._ASK_AGAIN", 0)
    monkeypatch.setattr("worker.artifacts.verify_layouts.checked_prefix._THREADS", 1)
    names = [f"{number:02}" for number in range(40)]
    for name in names:
        (root / name).write_bytes(b"x")
    (root / "SHA256SUMS").write_text("".join(f"{hashlib.sha256(b'x').hexdigest()}  {name}\n" for name in names))
    read, asked = Store.read_object, list[str]()

    def failing(self: Store, bucket: str, key: str, **options: object) -> object:
        if key == "SHA256SUMS":
            return read(self, bucket, key, **options)  # type: ignore[arg-type]
        asked.append(key)
        raise Unavailable(f"nas: {bucket}/{key}: no answer")

    monkeypatch.setattr(Store, "read_object", failing)
    assert cli.run(["sweep", "sha256sums", "nas", "there"]) == 3
    assert len(asked) == load_settings().breaker.failures
