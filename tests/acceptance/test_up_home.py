"""`zot-artifacts up` on data directories with odd names, damaged files, or no permission to write."""

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tests.acceptance.commands import Zot
from tests.acceptance.forked_up import running
from tests.servers.worker import Worker
from tests.waiting import WITHIN
from worker.catalogue import Catalogue


def test_any_name_of_the_data_directory_works(tmp_path: Path) -> None:
    """Broker and catalogue work in a directory whose name means something else in a URL or a configuration file."""
    name = 'a b x%20y q?x#y jürgen "日本"'
    home = tmp_path / name
    source = tmp_path / "app.tgz"
    source.write_bytes(b"release one")
    zot = Zot(home)
    with running(home, "--no-beat", "--no-flower"):
        assert zot("upload", source, "releases/app.tgz").status == 0
    assert (home / "catalogue.sqlite3").exists()
    assert zot("ls", "--json").document["artifacts"][0]["key"] == "app.tgz"
    assert {path.name for path in tmp_path.iterdir()} == {name, "app.tgz"}


def test_a_damaged_broker_file_is_repaired(tmp_path: Path) -> None:
    """Garbage at the end of the append-only file is cut off at the next start, told, and kept in a copy."""
    home = tmp_path / "home"
    with running(home, "--no-beat", "--no-flower"):
        pass
    [file] = (home / "broker" / "appendonlydir").glob("*.incr.aof")
    good = file.read_bytes()
    file.write_bytes(good + b"*2\r\n$6\r\nSELECT\r\ngarbage")
    with running(home, "--no-beat", "--no-flower"):
        assert Zot(home)("jobs").status == 0
    assert "the last 23 bytes of" in (home / "up.log").read_text()
    [copy] = (home / "broker").glob("damaged-*/*.incr.aof")
    assert copy.read_bytes() == good + b"*2\r\n$6\r\nSELECT\r\ngarbage"


@pytest.mark.parametrize("content", ["directory", "text"])
def test_up_tells_what_is_where_the_catalogue_belongs(content: str, tmp_path: Path) -> None:
    """What is no catalogue is told in one line, with the file and the way out, before anything is started."""
    home = tmp_path / "home"
    file = home / "catalogue.sqlite3"
    home.mkdir(mode=0o700)
    file.mkdir() if content == "directory" else file.write_text("no database", encoding="utf-8")
    done = Zot(home)("up")
    assert (done.status, done.is_one_line()) == (2, True)
    assert str(file) in done.stderr
    assert "catalogue restore" in done.stderr
    assert list((home / "logs").iterdir()) == []


def test_a_limit_of_open_files_that_is_too_low_is_told(tmp_path: Path) -> None:
    """`up` and `doctor` name the limit and the way out before anything fails because of it."""
    (tmp_path / "catalogue.sqlite3").mkdir()  # which ends both soon
    for command in ("up", "doctor"):
        limited = ["sh", "-c", 'ulimit -n 40; exec "$@"', "sh", sys.executable, "-m", "worker.cli", command]
        environment = {**os.environ, "ZOT_HOME": str(tmp_path)}
        done = subprocess.run(limited, env=environment, capture_output=True, text=True, check=False, timeout=WITHIN)
        assert "the limit of open files is 40" in done.stdout + done.stderr, done
        assert "`ulimit -n 1024`" in done.stdout + done.stderr


def test_an_older_version_starts_nothing_on_a_newer_catalogue(tmp_path: Path) -> None:
    """`up` and a worker say in one line that the catalogue is of a newer version, and where the way back is."""
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    Catalogue(f"sqlite:///{home / 'catalogue.sqlite3'}").close()
    with closing(sqlite3.connect(home / "catalogue.sqlite3")) as catalogue, catalogue:
        catalogue.execute("UPDATE alembic_version SET version_num = '9999'")
    done = Zot(home)("up")
    assert (done.status, done.is_one_line()) == (2, True)
    assert list((home / "logs").iterdir()) == []
    worker = Worker(tmp_path, "redis://127.0.0.1:1/0")
    ended = subprocess.run(
        worker.command(), env={**os.environ, **worker.environment()}, capture_output=True, text=True, check=False,
        timeout=WITHIN,
    )  # fmt: skip
    assert ended.returncode == 1
    for said in (done.stderr, ended.stderr):
        assert "made by a newer version" in said
        assert "docs/howto/upgrade.md" in said


@pytest.mark.parametrize("name", ["run/broker-password", "run/broker-url", "logs/worker.log"])
def test_what_is_no_file_is_told_in_place_of_waiting_for_it(name: str, tmp_path: Path) -> None:
    """A FIFO or a directory where `up` reads or appends is told in one line, with the way out; nothing is started."""
    for make in (os.mkfifo, Path.mkdir):
        path = tmp_path / make.__name__ / name
        path.parent.mkdir(mode=0o700, parents=True)
        make(path)
        commands = [["up"], ["jobs", "cancel", "x"]] if name == "run/broker-url" else [["up"]]
        for command in commands:
            done = Zot(tmp_path / make.__name__)(*command)
            assert (done.status, done.is_one_line()) == (2, True)
            assert f"{path} is no file" in done.stderr


@pytest.mark.parametrize("command", [["up"], ["doctor"], ["upload", __file__, "a/b"], ["jobs", "cancel", "x"]])
def test_a_directory_that_cannot_be_made_is_one_line(command: list[str], tmp_path: Path) -> None:
    """Where the data directory cannot be made, the line names it and ZOT_HOME, with status 2."""
    (tmp_path / "file").touch()
    done = Zot(tmp_path / "beside", {"ZOT_HOME": str(tmp_path / "file" / "home")})(*command)
    assert done.status == 2
    assert done.is_one_line() or command == ["doctor"]
    assert "ZOT_HOME" in done.stderr
    assert str(tmp_path / "file") in done.stderr
