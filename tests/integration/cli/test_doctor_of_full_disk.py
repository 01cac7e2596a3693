"""`doctor` and the upload of a directory on a full disk."""

import json
import os
from contextlib import closing, suppress
from pathlib import Path

import pytest

from tests.faults.test_filesystem_crash import small_disk
from worker import cli
from worker.cli.session import open_session
from worker.settings import load_settings

__all__ = ["small_disk"]


@pytest.mark.parametrize("what", ["data directory", "store nas"])
def test_a_full_disk_is_named_with_the_way_out(
    what: str,
    small_disk: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Another ZOT_HOME would be another catalogue: the disk that is full needs room."""
    home, nas = (small_disk if what == each else tmp_path for each in ("data directory", "store nas"))
    monkeypatch.setenv("ZOT_HOME", str(home / "home"))
    monkeypatch.setenv("ZOT_STORES", json.dumps({"nas": {"type": "filesystem", "root": str(nas / "nas")}}))
    (nas / "nas").mkdir()
    open_session(load_settings(), create=True).close()
    with (small_disk / "full").open("wb", buffering=0) as file:
        fill(file.fileno())
    cli.run(["doctor", "--json"])
    check = next(each for each in json.loads(capsys.readouterr().out)["checks"] if each["name"] == what)
    if what == "data directory":
        assert check["detail"].endswith("No space left on device")
        assert check["way_out"] == f"make room on the disk that is mounted at {small_disk}"
    else:
        assert check["detail"].endswith(f"No space left on device; make room in {nas / 'nas'}, or raise the limit")
        assert check["way_out"] is None


@pytest.mark.parametrize("root", ["src", "other"])
def test_a_directory_that_is_in_a_root_need_not_be_added_to_the_roots(
    root: str,
    small_disk: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The list of a directory is staged, and its files only where the worker cannot read them in place."""
    for name in ("src", "other", "nas"):
        (tmp_path / name).mkdir()
    (tmp_path / "src" / "app").write_bytes(b"app")
    monkeypatch.setenv("ZOT_HOME", str(small_disk / "home"))
    monkeypatch.setenv("ZOT_STORES", json.dumps({"nas": {"type": "filesystem", "root": str(tmp_path / "nas")}}))
    monkeypatch.setenv("ZOT_SOURCES__ROOTS", json.dumps([str(tmp_path / root)]))
    monkeypatch.setenv("ZOT_BROKER", "redis://127.0.0.1:1/0")  # nothing is sent
    with closing(open_session(load_settings(), create=True)), (small_disk / "full").open("wb", buffering=0) as file:
        fill(file.fileno())
        assert cli.run(["upload", "-r", str(tmp_path / "src"), "releases"]) == 1
    said = capsys.readouterr().err.strip()
    assert "No space left on device; make room there" in said
    assert said.endswith(", or add the directory to sources.roots") is (root == "other")


def fill(file: int) -> None:
    """Write to a file until its disk is full."""
    for size in (65536, 1):
        with suppress(OSError):
            while os.write(file, bytes(size)):
                pass
