"""Test that a local destination has the complete bytes or is not changed, and keeps its kind."""

import os
import resource
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.durable import synced
from worker.cli import atomic_file
from worker.cli.atomic_file import complete_file
from worker.cli.errors import Failure
from worker.cli.get_directory import Refused, Target

DATA = b"all the bytes"


def _write(path: Path, spool: Path) -> None:
    with complete_file(path, spool) as file:
        file.write(DATA)


def _break_off(path: Path, spool: Path) -> None:
    with complete_file(path, spool) as file:
        file.write(b"incomplete")
        assert not path.is_file() or path.read_bytes() == b"old"
        raise ZeroDivisionError


def test_a_file_is_replaced_whole_and_keeps_its_permissions(tmp_path: Path) -> None:
    """A file has its old bytes until the new ones are complete and durable, and its permissions afterwards."""
    path = tmp_path / "f"
    path.write_bytes(b"old")
    path.chmod(0o640)
    with pytest.raises(ZeroDivisionError):
        _break_off(path, tmp_path)
    assert path.read_bytes() == b"old"
    with synced() as disk:
        _write(path, tmp_path)
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (DATA, 0o640)
    assert disk.keeps(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["f"]


def test_a_process_that_is_killed_leaves_nothing(tmp_path: Path) -> None:
    """The bytes have no name before they are complete, whatever name they get: one of 246 bytes, too."""
    path = tmp_path / ("\u3042" * 82)
    with complete_file(path, tmp_path) as file:
        file.write(DATA)
        assert list(tmp_path.iterdir()) == []
    assert path.read_bytes() == DATA


def test_a_disk_without_unnamed_files_is_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A temporary file has a reserved name, which no upload of the directory takes for a file of the user."""
    monkeypatch.delattr(os, "O_TMPFILE")
    with complete_file(tmp_path / "f", tmp_path) as file:
        file.write(DATA)
        (temporary,) = tmp_path.iterdir()
    assert temporary.name.startswith(".zot-")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("f", DATA)]


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_is_followed_and_stays(tmp_path: Path, exists: bool) -> None:
    """A symbolic link still refers to its file, which has the bytes."""
    real, link = tmp_path / "real", tmp_path / "link"
    if exists:
        real.write_bytes(b"old")
    link.symlink_to("real")
    _write(link, tmp_path)
    assert link.is_symlink()
    assert real.read_bytes() == DATA


@pytest.mark.parametrize("name", ["directory", "dangling", "missing/f"])
def test_an_error_names_the_destination(tmp_path: Path, name: str) -> None:
    """The error of a destination that cannot be written names it as the user did, and no temporary file."""
    (tmp_path / "directory").mkdir()
    (tmp_path / "dangling").symlink_to("nowhere/f")
    with pytest.raises(Failure, match="name another file$") as raised:
        _write(tmp_path / name, tmp_path)
    assert str(raised.value).startswith(f"{tmp_path / name} cannot be written: ")
    assert (f"directory; make the directory {tmp_path / 'missing'}, or " in str(raised.value)) is (name == "missing/f")


@contextmanager
def _room(size: int) -> Iterator[None]:
    """Let no file grow beyond a size; as on a disk that gets full, the write that reaches it writes less."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_that_does_not_fit_is_an_error_and_not_cut(tmp_path: Path) -> None:
    """The last write may have room for some of its bytes: nothing appears, and the error names what is full."""
    (tmp_path / "null").symlink_to("/dev/null")
    for name, full in (("f", tmp_path / "f"), ("null", tmp_path)):
        with _room(4), pytest.raises(Failure, match=f"^{full} cannot be written: File too large; raise the limit"):
            _write(tmp_path / name, tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["null"]


def test_a_fifo_below_a_directory_is_refused(tmp_path: Path) -> None:
    """Of many files none is a FIFO: to read or write one waits for another program."""
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(Refused, match="a FIFO"):
        Target(tmp_path).path_of("fifo")


def test_a_fifo_is_written_into(tmp_path: Path) -> None:
    """The reader of a FIFO gets the bytes once they are complete, and none of incomplete ones."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(fifo.read_bytes()))
    reader.start()
    with pytest.raises(ZeroDivisionError):
        _break_off(fifo, tmp_path)
    _write(fifo, tmp_path)
    reader.join(30)
    assert got == [DATA]
    assert fifo.is_fifo()


def test_a_fifo_without_a_reader_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command does not wait for ever, and the FIFO stays."""
    monkeypatch.setattr(atomic_file, "_PATIENCE", 0.2)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(Failure, match="No such device or address"):
        _write(tmp_path / "fifo", tmp_path)
    assert stat.S_ISFIFO((tmp_path / "fifo").stat().st_mode)


def test_a_socket_is_an_error_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a FIFO can get a reader: nothing else is waited for."""
    monkeypatch.setattr(atomic_file, "time", SimpleNamespace(monotonic=time.monotonic))
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "socket"))
        with pytest.raises(Failure, match="No such device or address"):
            _write(tmp_path / "socket", tmp_path)


def test_a_device_is_written_into(tmp_path: Path) -> None:
    """A device stays a device."""
    link = tmp_path / "null"
    link.symlink_to("/dev/null")
    _write(link, tmp_path)
    assert stat.S_ISCHR(link.stat().st_mode)


def test_the_open_standard_output_is_written_into(tmp_path: Path) -> None:
    """`/dev/stdout` is the descriptor: what a shell has redirected it to is appended to and not replaced."""
    out = tmp_path / "out"
    out.write_bytes(b"before ")
    code = (
        "import pathlib, sys; from worker.cli.atomic_file import complete_file\n"
        f"with complete_file(pathlib.Path('/dev/stdout'), pathlib.Path({str(tmp_path)!r})) as f: f.write({DATA!r})"
    )
    with out.open("ab") as file:
        subprocess.run([sys.executable, "-c", code], stdout=file, check=True)
    assert out.read_bytes() == b"before " + DATA
