"""Test that a file source that cannot be opened fails or is retried by the reason."""

import errno
import os
from pathlib import Path

import pytest

from tests.open_files import open_below
from worker.artifacts.sources import SourceRefused, open_source
from worker.settings import Settings, load_settings
from worker.storage.errors import Unavailable


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "in"
    path.mkdir()
    return path


@pytest.fixture
def settings(tmp_path: Path, root: Path) -> Settings:
    made = load_settings(home=tmp_path / "home", sources={"roots": [str(root)]})
    made.prepare()
    return made


def test_a_directory_as_source_leaves_no_descriptor_open(settings: Settings, root: Path) -> None:
    """Messages that name a directory are refused, and the process can open as many files as before."""
    (root / "directory").mkdir()
    for _ in range(20):
        with pytest.raises(SourceRefused, match="only regular files"), open_source(str(root / "directory"), settings):
            pass
    assert open_below(root) == []


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
def test_what_the_machine_lacks_now_is_transient(
    settings: Settings, root: Path, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A source that cannot be opened because of the machine is tried again, and not refused for good."""
    (root / "f").write_bytes(b"x")

    def refuse(*_: object, **__: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("worker.artifacts.sources.local_file.os.open", refuse)
    with pytest.raises(Unavailable, match=os.strerror(code)), open_source(str(root / "f"), settings):
        pass


@pytest.mark.parametrize("name", ["a\0b", "a\ud800"])
def test_a_name_that_no_file_can_have_is_refused(settings: Settings, root: Path, name: str) -> None:
    """A source with a NUL or a lone surrogate in its name is refused like any other, and never an unknown error."""
    with pytest.raises(SourceRefused, match="no file can have this name"), open_source(f"{root}/{name}", settings):
        pass


@pytest.fixture
def outside(root: Path, tmp_path: Path) -> Path:
    """Return a directory outside the roots, with a file of the same name as one in the directory `d` of the root."""
    for directory in (root / "d", tmp_path / "outside"):
        directory.mkdir()
        (directory / "f").write_bytes(b"x")
    return tmp_path / "outside"


def test_a_link_that_replaces_a_directory_leads_nowhere_else(settings: Settings, root: Path, outside: Path) -> None:
    """What is opened has to be below a root, although the directories of a page are resolved once a second."""
    with open_source(str(root / "d" / "f"), settings):
        pass
    (root / "d").rename(root / "other")
    (root / "d").symlink_to(outside)
    with (
        pytest.raises(SourceRefused, match="not under a configured root"),
        open_source(str(root / "d" / "f"), settings),
    ):
        pass
    (root / "d").unlink()
    (root / "d").symlink_to(root / "other")
    with open_source(str(root / "d" / "f"), settings) as source:
        assert source.read(2) == b"x"


def test_a_removed_file_behind_a_link_that_replaced_a_directory_is_refused(
    settings: Settings, root: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system names no path for what was opened, as for a file of another mount namespace: the link is followed."""
    with open_source(str(root / "d" / "f"), settings):
        pass
    (root / "d").rename(root / "other")
    (root / "d").symlink_to(outside)
    real_open = os.open

    def open_and_remove(name: str, flags: int) -> int:
        fd = real_open(name, flags)
        Path(name).unlink()
        return fd

    monkeypatch.setattr("worker.artifacts.sources.local_file.os.open", open_and_remove)
    with (
        pytest.raises(SourceRefused, match="not under a configured root"),
        open_source(str(root / "d" / "f"), settings),
    ):
        pass


def test_a_removed_file_whose_directory_is_back_is_refused(
    settings: Settings, root: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check is of the file that was opened, and not of the one that has its name afterwards."""
    real_open = os.open

    def open_behind_link(name: str, flags: int) -> int:
        (root / "d").rename(root / "other")
        (root / "d").symlink_to(outside)
        fd = real_open(name, flags)
        (outside / "f").unlink()
        (root / "d").unlink()
        (root / "other").rename(root / "d")
        return fd

    monkeypatch.setattr("worker.artifacts.sources.local_file.os.open", open_behind_link)
    with pytest.raises(Unavailable, match="replaced"), open_source(str(root / "d" / "f"), settings):
        pass
