"""The setting of every measurement: a directory on the measured disk, the real servers, files of known size."""

import fcntl
import json
import os
import shutil
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness.result_rows import NotMeasured
from tests.servers.valkey import Valkey
from tests.servers.worker import Worker
from zot_artifact_client import ArtifactClient

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
WAIT = 3600.0
"""Seconds: longer than any job here takes, so that a run ends even when a job does not."""
_BLOCK = 8 * MIB
_GET_FLAGS, _SET_FLAGS = 0x80086601, 0x40086602
"""FS_IOC_GETFLAGS and FS_IOC_SETFLAGS of Linux: see ioctl_iflags(2)."""
_FLAGS = struct.Struct("@l")
_TOP_DIRECTORY = 0x00020000
"""FS_TOPDIR_FL: the directories in this one are placed in other parts of the disk."""


@dataclass(frozen=True, slots=True)
class Testbed:
    """The directory and servers of a measurement, whether it is a quick one, and which lines are selected.

    `pairs`: how many of each line, in place of its own number.
    """

    directory: Path
    valkey: Valkey
    quick: bool
    only: str = ""
    pairs: int | None = None

    def wants(self, what: str) -> bool:
        """Return whether a line that begins with these words is selected."""
        return self.only.lower() in what.lower()

    @property
    def incoming(self) -> Path:
        """Return the directory that workers may upload from."""
        made = self.directory / "incoming"
        made.mkdir(exist_ok=True)
        return made

    def need(self, size: int) -> None:
        """Raise NotMeasured unless the disk has room for so many bytes and a little more."""
        free = shutil.disk_usage(self.directory).free
        if free < size + GIB:
            raise NotMeasured(
                f"it takes {size / GIB + 1:.0f} GiB of free disk in {self.directory.parent} and there are "
                f"{free / GIB:.1f}: make room, name another directory with --dir, or measure less with --quick"
            )

    @contextmanager
    def worker(self, name: str, concurrency: int, **settings: str) -> Iterator[Worker]:
        """Run our worker as users do, on a data directory of its own, without sweeps; remove its files at the end.

        A fork of the tests' fork server would have the memory of all that the tests import.
        """
        started = {"concurrency": concurrency, "beat": False, "fork": False}
        ours = {"sources__roots": json.dumps([str(self.incoming)]), "sweep__verify__enabled": "false"}
        directory = self.directory / name
        try:
            with Worker(directory, self.valkey.url, **started, **ours, **settings) as running:
                yield running
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    @contextmanager
    def client(self) -> Iterator[ArtifactClient]:
        with ArtifactClient(self.valkey.url) as opened:
            yield opened

    @contextmanager
    def file(self, name: str, size: int) -> Iterator[Path]:
        """Write a file of bytes that are not zero, no two blocks alike, to the disk; remove it at the end."""
        block = bytearray(os.urandom(min(size, _BLOCK)))
        path = self.incoming / name
        try:
            with path.open("wb") as file:
                for offset in range(0, size, _BLOCK):
                    block[:8] = offset.to_bytes(8, "big")
                    file.write(block[: size - offset])
                file.flush()
                os.fsync(file.fileno())
            yield path
        finally:
            path.unlink(missing_ok=True)


def spread(directory: Path) -> None:
    """Have the disk keep what is made in this directory away from files that were removed a moment ago.

    ext4 passes over the inodes of files that were removed within the last minutes one by one: after 6,000 files of the
    measurement before, it took eight times as long to make a file in a directory beside theirs.
    """
    fd = os.open(directory, os.O_RDONLY)
    try:
        flags = fcntl.ioctl(fd, _GET_FLAGS, bytes(_FLAGS.size))
        fcntl.ioctl(fd, _SET_FLAGS, _FLAGS.pack(_FLAGS.unpack(flags)[0] | _TOP_DIRECTORY))
    except OSError:  # a disk of another kind
        pass
    finally:
        os.close(fd)


def shown(size: int) -> str:
    """Return the text of a size that is a whole number of units, such as `64 MiB`."""
    for unit, text in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if size >= unit:
            return f"{size / unit:g} {text}"
    return f"{size} B"
