"""The embedded broker starts with what its damaged files still hold."""

from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from tests.servers import Valkey
from worker.embedded.append_only_file import DamagedBroker, repair
from worker.embedded.valkey import find_server


def _base(files: Path) -> Path:
    return next(files.glob("*.base.rdb"))


def _increment(files: Path) -> Path:
    return next(files.glob("*.incr.aof"))


def _manifest(files: Path) -> Path:
    return files / "appendonly.aof.manifest"


DAMAGES: dict[str, Callable[[Path], object]] = {
    "no manifest": lambda files: _manifest(files).unlink(),
    "empty manifest": lambda files: _manifest(files).write_bytes(b""),
    "garbage in the manifest": lambda files: _manifest(files).write_bytes(b"\xff\xfe\n"),
    "empty base": lambda files: _base(files).write_bytes(b""),
    "garbage in the base": lambda files: _base(files).write_bytes(b"garbage"),
    "no base": lambda files: _base(files).unlink(),
    "garbage at the end": lambda files: _increment(files).write_bytes(_increment(files).read_bytes() + b"garbage"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_broker_starts_with_what_is_whole(tmp_path: Path, damage: str) -> None:
    """Whatever file is damaged or missing, the messages in the others are there, and a copy of all is kept."""
    server = Valkey(tmp_path / "broker")
    with server, redis.Redis.from_url(server.url) as client:
        client.lpush("transfer", "message")
    directory = server.directory
    assert repair(directory, find_server()) is None
    DAMAGES[damage](directory / "appendonlydir")
    assert repair(directory, find_server()) is not None
    assert repair(directory, find_server()) is None
    assert len(list(directory.glob("damaged-*"))) == 1
    again = Valkey(tmp_path / "broker")
    with again, redis.Redis.from_url(again.url) as client:
        assert client.lrange("transfer", 0, -1) == [b"message"]


def test_a_check_that_is_killed_leaves_out_no_file(tmp_path: Path) -> None:
    """The kernel kills it where memory is short: that is no reason to start without the messages."""
    files, killed = tmp_path / "appendonlydir", tmp_path / "server"
    files.mkdir()
    (files / "appendonly.aof.1.base.rdb").write_bytes(b"whole")
    _manifest(files).write_text("file appendonly.aof.1.base.rdb seq 1 type b\n")
    killed.write_text("#!/bin/sh\nkill -KILL $$\n")
    killed.chmod(0o700)
    with pytest.raises(DamagedBroker, match="was killed"):
        repair(tmp_path, killed)
    assert _manifest(files).read_text() == "file appendonly.aof.1.base.rdb seq 1 type b\n"
    assert not list(tmp_path.glob("damaged-*"))


def test_lost_increments_are_told(tmp_path: Path) -> None:
    """A file that the manifest names and that is gone keeps the broker from no start."""
    server = Valkey(tmp_path / "broker")
    with server, redis.Redis.from_url(server.url) as client:
        client.lpush("transfer", "message")
    _increment(server.directory / "appendonlydir").unlink()
    told = str(repair(server.directory, find_server()))
    assert "is missing" in told
    assert told.endswith("sent again, jobs that no worker had taken may be lost")
    with Valkey(tmp_path / "broker") as again, redis.Redis.from_url(again.url) as client:
        assert client.ping()


@pytest.mark.parametrize("kind", ["a file", "a dangling link", "an increment that is a directory"])
def test_what_the_broker_cannot_start_with_is_named(tmp_path: Path, kind: str) -> None:
    """Another kind of file in place of the broker's is an error with the way out, and no server that ends for ever."""
    files = tmp_path / "appendonlydir"
    if kind == "a file":
        files.touch()
    elif kind == "a dangling link":
        files.symlink_to("nowhere")
    else:
        (files / "appendonly.aof.1.incr.aof").mkdir(parents=True)
        _manifest(files).write_text("file appendonly.aof.1.incr.aof seq 1 type i\n")
    with pytest.raises(DamagedBroker, match=rf"{files}.*then start again"):
        repair(tmp_path, find_server())
