"""Reading and hashing files: our verify jobs on two worker processes, against two processes of well-known tools."""

import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.harness.processor_time import Run, of_a_gib, server_seconds, timed, tool_seconds
from benchmarks.harness.result_rows import NotMeasured, Row, Samples, Target
from benchmarks.harness.testbed import GIB, MIB, WAIT, Testbed, shown
from tests.servers.worker import Worker
from zot_artifact_client import ArtifactClient

FILES = 4
OURS = "ours"
YARDSTICK = "sha256sum"
OPENSSL = "openssl dgst"
TOOLS = {YARDSTICK: ("sha256sum",), OPENSSL: ("openssl", "dgst", "-sha256")}
TARGETS = {YARDSTICK: Target(0.9, at_least=True), OPENSSL: Target(0.97, at_least=True)}


@dataclass(frozen=True, slots=True)
class Reader:
    """A program that reads all files, from the page cache or from the disk."""

    name: str
    read: Callable[[], None]
    cached: bool
    used: Callable[[], float] = tool_seconds
    """Returns the processor time until now."""


def measure(testbed: Testbed) -> list[Row]:
    """Let each reader read the same files in turn, several times, and compare neighbours."""
    size, rounds = (256 * MIB, 3) if testbed.quick else (GIB, 5)
    testbed.need((FILES + 1) * size)
    with testbed.worker("verifying", 2) as worker, testbed.client() as client:
        keys = [_stored(testbed, client, number, size) for number in range(FILES)]
        files = [worker.home / "stores" / "primary" / "verifying" / key for key in keys]
        readers = _readers(worker, client, keys, files)
        runs: dict[str, list[Run]] = {reader.name: [] for reader in readers}
        for _ in range(rounds):
            for reader in readers:
                runs[reader.name].append(_run(reader, files))
    ours, *others = ((name, _samples(of_reader)) for name, of_reader in runs.items())
    what = f"verify {FILES} files of {shown(size)} on two worker processes"
    return [Row(f"{what}, against two {name}", ours[1], theirs, TARGETS.get(name)) for name, theirs in others]


def _samples(runs: Sequence[Run]) -> Samples:
    cost = of_a_gib([run.each for run in runs], 1)
    return Samples([run.rate / 1e6 for run in runs], " MB/s", cost=cost)


def _stored(testbed: Testbed, client: ArtifactClient, number: int, size: int) -> str:
    key = f"{number}.bin"
    with testbed.file(key, size) as source:
        client.upload(source, "verifying", key, stores=["primary"]).wait(WAIT)
    return key


def _readers(worker: Worker, client: ArtifactClient, keys: Sequence[str], files: Sequence[Path]) -> list[Reader]:
    """Return the readers, ours first; those that read from the page cache come after one that fills it."""

    def ours() -> None:
        jobs = [client.verify("verifying", key, stores=["primary"]) for key in keys]
        if not all(job.wait(WAIT).good for job in jobs):
            raise NotMeasured("the store does not hold what was uploaded to it")

    readers = [Reader(OURS, ours, cached=False, used=lambda: server_seconds(worker))]
    for name, command in TOOLS.items():
        if shutil.which(command[0]):
            read = partial(_two_at_a_time, command, files)
            readers += [Reader(name, read, cached=False), Reader(f"{name} from the page cache", read, cached=True)]
    if YARDSTICK not in {reader.name for reader in readers}:
        raise NotMeasured(f"there is no {YARDSTICK} here to compare with")
    return readers


def _two_at_a_time(command: Sequence[str], files: Sequence[Path]) -> None:
    names = "".join(f"{file}\0" for file in files)
    run = ["xargs", "-0", "-n1", "-P2", *command]
    subprocess.run(run, input=names, text=True, stdout=subprocess.DEVNULL, check=True)


def _run(reader: Reader, files: Sequence[Path]) -> Run:
    """Let a tool read all files: bytes a second, and seconds of processor time of each."""
    if not reader.cached:
        _forget(files)
    return timed(sum(file.stat().st_size for file in files), reader.used, reader.read)


def _forget(files: Sequence[Path]) -> None:
    for file in files:
        with file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
