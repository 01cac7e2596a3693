"""Files of a directory are linked or copied whole into the staging directory, and a bad one stops no other."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.durable import synced
from worker.artifacts.directory_listing import DirectoryListing
from worker.cli import upload_directory
from worker.cli.upload_directory import _NotStaged, _placed, _staged

FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "gone": (Path.unlink, "No such file"),
    "fifo": (lambda path: (path.unlink(), os.mkfifo(path)), "no regular file any more"),
    "directory": (lambda path: (path.unlink(), path.mkdir()), "no regular file any more"),
    "loop": (lambda path: (path.unlink(), path.symlink_to(path.name)), "Too many levels|no regular file"),
}


@pytest.fixture(params=["linked", "copied", "copied by reads"])
def staging(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a staging directory on the disk of the files, on another one, or on one that shares no blocks with it."""

    def refuse(*_: object, **__: object) -> int:
        raise OSError(errno.EXDEV, "another disk")

    if request.param != "linked":
        monkeypatch.setattr(os, "link", refuse)
    if request.param == "copied by reads":
        monkeypatch.setattr(os, "copy_file_range", refuse)
    (tmp_path / "staging").mkdir()
    return tmp_path / "staging"


def test_files_are_staged_whole(staging: Path, tmp_path: Path) -> None:
    """The staged file has the bytes, the list its size and time, and a power cut takes neither its names nor a copy."""
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "f").write_bytes(b"bytes" * 100_000)
    (listed,) = DirectoryListing(tmp_path / "tree", "b", "").files()
    with synced() as copied:
        staged = _staged(listed, staging / "1", tmp_path / "job")
    found = (staging / "1").stat()
    assert (staged.path, staged.size, staged.mtime_ns) == (str(tmp_path / "job" / "1"), 500_000, found.st_mtime_ns)
    assert (staging / "1").read_bytes() == b"bytes" * 100_000
    with synced() as disk:
        assert _placed(staging, tmp_path / "job" / "list")
    assert disk.has_name(tmp_path / "job")
    assert disk.has_name(tmp_path / "job" / "1")
    assert found.st_nlink > 1 or copied.has_content(tmp_path / "job" / "1")


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_no_file_any_more_is_named_and_leaves_nothing(staging: Path, tmp_path: Path, fault: str) -> None:
    """A file that was listed and has become something else since is refused at once, and stops no other file."""
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "f").write_bytes(b"bytes")
    (listed,) = DirectoryListing(tmp_path / "tree", "b", "").files()
    happens, reason = FAULTS[fault]
    happens(tmp_path / "tree" / "f")
    with pytest.raises(_NotStaged, match=reason):
        _staged(listed, staging / "1", tmp_path / "job")
    assert list(staging.iterdir()) == []


@pytest.mark.parametrize("staging", ["copied", "copied by reads"], indirect=True)
def test_a_copy_of_two_contents_is_never_staged(staging: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that another program writes to while it is copied is refused: a link shows the change to the worker."""
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "f").write_bytes(b"first" * 1000)
    (listed,) = DirectoryListing(tmp_path / "tree", "b", "").files()
    real = upload_directory._copy_bytes

    def copied(*files: object) -> None:
        real(*files)
        (tmp_path / "tree" / "f").write_bytes(b"other" * 1000)

    monkeypatch.setattr(upload_directory, "_copy_bytes", copied)
    with pytest.raises(_NotStaged, match="changed while it was copied"):
        _staged(listed, staging / "1", tmp_path / "job")
    assert list(staging.iterdir()) == []


@pytest.mark.parametrize("staging", ["copied", "copied by reads"], indirect=True)
def test_a_file_that_grows_as_fast_as_it_is_copied_is_refused(
    staging: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as a log: to copy it would end when the disk is full."""
    (tmp_path / "tree").mkdir()
    log = tmp_path / "tree" / "log"
    log.write_bytes(b"line\n" * 1000)
    (listed,) = DirectoryListing(tmp_path / "tree", "b", "").files()

    def growing(copy: Callable[..., object]) -> Callable[..., object]:
        def copied(*arguments: object) -> object:
            assert log.stat().st_size < 100 * listed.size, "it does not end"
            done = copy(*arguments)
            with log.open("ab") as file:
                file.write(b"line\n" * 1000)
            return done

        return copied

    monkeypatch.setattr(os, "copy_file_range", growing(os.copy_file_range))
    monkeypatch.setattr(upload_directory, "_read", growing(upload_directory._read))
    with pytest.raises(_NotStaged, match="changed while it was copied"):
        _staged(listed, staging / "1", tmp_path / "job")
    assert list(staging.iterdir()) == []
