"""The programs that put and get files: ours, and the well-known tools with their default options."""

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Protocol

from benchmarks.harness import transfer_in_process
from benchmarks.harness.bare_celery import sync
from benchmarks.harness.result_rows import NotMeasured
from tests.servers.process import find_server
from worker.storage import Store

SYNCED = "rclone and fsync"
VERIFIED = "rclone and openssl dgst"
_LEAST = 1e-3
"""Seconds: the least time of a tool after its start is subtracted."""


class TransferTool(Protocol):
    """Puts, gets and verifies one file under a key; puts and gets all files of a directory below `key/`.

    All return the seconds that they took. The caller guarantees that key and path are free.
    """

    @property
    def name(self) -> str: ...
    def put(self, path: Path, key: str) -> float: ...
    def get(self, key: str, path: Path) -> float: ...
    def verify(self, key: str) -> float: ...


@dataclass(frozen=True, slots=True)
class Ours:
    """`Store` in this process, one object at a time, as in one child of a worker.

    `known` is what the catalogue keeps of each object that was put.
    """

    store: Store
    name: str = "ours"
    known: dict[str, transfer_in_process.Recorded] = field(default_factory=dict)

    def put(self, path: Path, key: str) -> float:
        begun = time.perf_counter()
        if path.is_dir():
            for file in path.iterdir():
                self.known[f"{key}/{file.name}"] = transfer_in_process.put(self.store, file, f"{key}/{file.name}")
        else:
            self.known[key] = transfer_in_process.put(self.store, path, key)
        return time.perf_counter() - begun

    def get(self, key: str, path: Path) -> float:
        begun = time.perf_counter()
        if path.is_dir():
            for found in self.store.list_objects(transfer_in_process.BUCKET, f"{key}/"):
                transfer_in_process.get(
                    self.store, found.key, path / found.key.removeprefix(f"{key}/"), self.known[found.key]
                )
        else:
            transfer_in_process.get(self.store, key, path, self.known[key])
        return time.perf_counter() - begun

    def verify(self, key: str) -> float:
        begun = time.perf_counter()
        if not transfer_in_process.verify(self.store, key, self.known[key]):
            raise NotMeasured("the store does not hold what was put into it")
        return time.perf_counter() - begun


@dataclass(frozen=True, slots=True)
class Rclone:
    """`rclone copyto` for one file, `rclone copy` for many: it copies four at once.

    `remote` is the prefix of the keys. `secrets` are environment variables. `of_many` are options of `copy` alone.
    """

    remote: str
    options: Sequence[str] = ()
    secrets: Mapping[str, str] = field(default_factory=dict)
    of_many: Sequence[str] = ()
    name: str = "rclone"

    def put(self, path: Path, key: str) -> float:
        return self._copy(path, str(path), f"{self.remote}/{key}")

    def get(self, key: str, path: Path) -> float:
        return self._copy(path, f"{self.remote}/{key}", str(path))

    def verify(self, key: str) -> float:
        program = find_server("rclone")
        command = (program, "hashsum", "sha256", "--download", f"{self.remote}/{key}", "--retries", "1", *self.options)
        return _took(self.name, command, (program, "version"), {"RCLONE_CONFIG": "/dev/null", **self.secrets})

    def _copy(self, path: Path, source: str, target: str) -> float:
        program = find_server("rclone")
        verb = ("copy", *self.of_many) if path.is_dir() else ("copyto",)
        command = (program, *verb, source, target, "--retries", "1", *self.options)
        return _took(self.name, command, (program, "version"), {"RCLONE_CONFIG": "/dev/null", **self.secrets})


@dataclass(frozen=True, slots=True)
class SyncedRclone:
    """`rclone` to a directory, and then an fsync of each file, without which a power cut may lose the files."""

    rclone: Rclone
    name: str = SYNCED

    def put(self, path: Path, key: str) -> float:
        took = self.rclone.put(path, key)
        written = Path(self.rclone.remote) / key
        begun = time.perf_counter()
        for file in (*written.iterdir(), written) if path.is_dir() else (written, written.parent):
            sync(file)
        return took + time.perf_counter() - begun

    def get(self, key: str, path: Path) -> float:
        return self.rclone.get(key, path)

    def verify(self, key: str) -> float:
        return self.rclone.verify(key)


@dataclass(frozen=True, slots=True)
class VerifiedRclone:
    """`rclone`, and then `openssl dgst -sha256` of the downloaded file, to verify as much as ours."""

    rclone: Rclone
    name: str = VERIFIED

    def put(self, path: Path, key: str) -> float:
        return self.rclone.put(path, key)

    def get(self, key: str, path: Path) -> float:
        took = self.rclone.get(key, path)
        return took + _took(self.name, ("openssl", "dgst", "-sha256", str(path)), ("openssl", "version"), {})

    def verify(self, key: str) -> float:
        return self.rclone.verify(key)


@dataclass(frozen=True, slots=True)
class S5cmd:
    """`s5cmd cp`, which copies 256 objects at once. `remote` is the prefix of the keys."""

    remote: str
    endpoint: str
    secrets: Mapping[str, str]
    name: str = "s5cmd"

    def put(self, path: Path, key: str) -> float:
        if path.is_dir():
            return self._copy(f"{path}/*", f"{self.remote}/{key}/")
        return self._copy(str(path), f"{self.remote}/{key}")

    def get(self, key: str, path: Path) -> float:
        if path.is_dir():
            return self._copy(f"{self.remote}/{key}/*", f"{path}/")
        return self._copy(f"{self.remote}/{key}", str(path))

    def verify(self, key: str) -> float:
        raise NotMeasured(f"{self.name} has no command that hashes {key}")

    def _copy(self, source: str, target: str) -> float:
        program = find_server("s5cmd")
        command = (program, "--log", "error", "--endpoint-url", self.endpoint, "cp", source, target)
        return _took(self.name, command, (program, "version"), {"AWS_REGION": "us-east-1", **self.secrets})


def _took(name: str, command: Sequence[str], idle: Sequence[str], variables: Mapping[str, str]) -> float:
    """Run a command, and return its seconds without those of the start of the program.

    Raises:
        NotMeasured: it failed; carries the last line of words that it wrote.
    """
    return max(_LEAST, _seconds(name, command, variables) - _start_of(name, *idle))


@cache
def _start_of(name: str, *idle: str) -> float:
    """Return the seconds that a program takes to start: the shortest of ten, because any of them may be delayed."""
    return min(_seconds(name, idle, {}) for _ in range(10))


def _seconds(name: str, command: Sequence[str], variables: Mapping[str, str]) -> float:
    strange = ("AWS_", "AZURE_", "GOOGLE_", "RCLONE_", "S3_")
    environment = {known: value for known, value in os.environ.items() if not known.startswith(strange)}
    begun = time.perf_counter()
    done = subprocess.run(command, env={**environment, **variables}, capture_output=True, text=True, check=False)
    took = time.perf_counter() - begun
    if done.returncode:
        said = [line for line in (done.stderr or done.stdout).splitlines() if any(map(str.isalnum, line))]
        raise NotMeasured(f"{name} ended with status {done.returncode} and said: {said[-1] if said else 'nothing'}")
    return took
