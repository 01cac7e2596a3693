"""Messages that are kept on the disk while the broker cannot record them."""

import json
import multiprocessing
import os
import shutil
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from tests.durable import synced
from worker.intake.deliveries_kept_on_disk import UnrecordedMessage


class _Queues:
    """A broker that takes messages."""

    def __init__(self) -> None:
        self.pushed: list[tuple[str, object]] = []

    def rpush(self, queue: str, text: str) -> None:
        self.pushed.append((queue, json.loads(text)))


def test_a_message_that_is_not_returned_yet_is_not_overwritten_by_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two messages that the broker could not record are both returned, each once, also if a read returns few bytes."""
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, size, offset: pread(fd, min(size, 10), offset))
    file, broker = UnrecordedMessage(tmp_path), _Queues()
    file.keep("one", {"body": "first"})
    file.keep("two", {"body": "second"})

    assert file.return_kept(broker) == 2
    assert sorted(broker.pushed, key=str) == [("one", {"body": "first"}), ("two", {"body": "second"})]
    assert file.return_kept(broker) == 0


def test_a_discarded_message_is_not_returned(tmp_path: Path) -> None:
    """Kept messages survive a power cut; only the one that the broker has recorded is forgotten."""
    with synced() as disk:
        file, broker = UnrecordedMessage(tmp_path), _Queues()
        file.keep("one", {"body": "first"})
        file.keep("two", {"body": "second"})
    assert [disk.keeps(path) for path in tmp_path.iterdir()] == [True, True]
    file.discard()

    assert file.return_kept(broker) == 1
    assert broker.pushed == [("one", {"body": "first"})]


def test_a_message_that_could_not_be_kept_discards_none_before_it(tmp_path: Path) -> None:
    """A failed write leaves the message before it, also when the broker has recorded the later one."""
    directory = tmp_path / "run"
    directory.mkdir()
    file, broker = UnrecordedMessage(directory), _Queues()
    file.keep("one", {"body": "first"})
    shutil.rmtree(directory)
    with pytest.raises(OSError, match="No such file"):
        file.keep("two", {"body": "second"})
    file.discard()

    assert file.return_kept(broker) == 1
    assert broker.pushed == [("one", {"body": "first"})]


def _keep_until_told(directory: Path, process_id: int, end: Connection) -> None:
    os.getpid = lambda: process_id
    UnrecordedMessage(directory).keep("other", {"body": "of another container"})
    end.send("kept")
    end.recv()


def test_two_processes_with_one_id_keep_a_message_each(tmp_path: Path) -> None:
    """Workers of several containers share the directory and may have one process id: one that ended is returned."""
    file, broker = UnrecordedMessage(tmp_path), _Queues()
    file.keep("own", {"body": "own"})
    ours, theirs = multiprocessing.Pipe()
    other = multiprocessing.get_context("fork").Process(target=_keep_until_told, args=(tmp_path, os.getpid(), theirs))
    other.start()
    theirs.close()
    assert ours.recv() == "kept"
    assert file.return_kept(broker) == 1
    ours.send("end")
    other.join()
    assert file.return_kept(broker) == 1
    assert broker.pushed == [("own", {"body": "own"}), ("other", {"body": "of another container"})]
    assert len(list(tmp_path.iterdir())) == 1
