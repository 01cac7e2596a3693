"""Uploading a directory: `upload_dir` with two worker processes, against rclone and s5cmd with the same files."""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.harness.processor_time import Run, as_samples, own_seconds, server_seconds, timed, tool_seconds
from benchmarks.harness.result_rows import FAILURES, Line, Missing, NotMeasured, Row, Target
from benchmarks.harness.running_stores import azure, filesystem, s3_rclone
from benchmarks.harness.testbed import KIB, MIB, WAIT, Testbed, shown
from benchmarks.harness.transfer_in_process import BUCKET
from benchmarks.harness.transfer_tools import Rclone, SyncedRclone, TransferTool
from tests.servers.worker import Worker
from zot_artifact_client import ArtifactClient

FILES, FEW = 2_000, 500
SIZES = (16 * KIB, MIB)
_PLACES = {
    "a directory": (filesystem, {}, 1.0),
    "a directory with digest: xattr": (filesystem, {"digest": "xattr"}, 1.0),
    "s3 (rclone serve s3)": (s3_rclone, {}, 1.4),
    "azure (azurite)": (azure, {}, 1.4),
}
_TRANSFERS = (4, 32)


@dataclass(frozen=True, slots=True)
class _Load:
    directory: Path
    count: int
    rounds: int


def measure(testbed: Testbed) -> Iterator[Line]:
    """Upload a directory with each of them in turn, and compare within each round."""
    count, rounds = (FEW, testbed.pairs or 2) if testbed.quick else (FILES, testbed.pairs or 5)
    for size in SIZES:
        for place in _PLACES:
            what = f"upload of {count:,} files of {shown(size)} to {place}"
            if not testbed.wants(what):
                continue
            try:
                testbed.need(6 * count * size)
                with _files(testbed, count, size) as directory:
                    yield _row(testbed, what, place, _Load(directory, count, rounds))
            except FAILURES as error:
                yield Missing(what, str(error))


def _row(testbed: Testbed, what: str, name: str, load: _Load) -> Row:
    place, changes, least = _PLACES[name]
    ours: list[Run] = []
    best: list[Run] = []
    with place(testbed.directory / "place") as there:
        config = {**there.config, **changes}
        settings = {"stores": json.dumps({"place": config}), "placement": '["place"]'}
        with testbed.worker("upload-dir", 2, **settings) as worker, testbed.client() as client:
            for number in range(load.rounds + 1):
                theirs = []
                for tool in _tools(there.tools):
                    theirs.append(_put(tool, load, number))
                    there.empty()
                best.append(max(theirs))
                os.sync()
                ours.append(_upload(worker, client, load, f"ours-{number}"))
                there.empty()
    shutil.rmtree(testbed.directory / "place", ignore_errors=True)
    ours, best = ours[1:], best[1:]  # the first round has warmed the worker and the cache
    against = "rclone copy and fsync" if least == 1.0 else "the best of rclone copy and s5cmd"
    target = Target(least, at_least=True)
    return Row(f"{what}, against {against}", as_samples(ours, " a second"), as_samples(best, " a second"), target)


def _tools(tools: Sequence[TransferTool]) -> Iterator[TransferTool]:
    """Yield the tools, rclone with few and with many transfers; for a directory only with fsync."""
    durable = any(isinstance(tool, SyncedRclone) for tool in tools)
    for tool in tools:
        if isinstance(tool, SyncedRclone):
            yield from (SyncedRclone(each) for each in _with_transfers(tool.rclone))
        elif isinstance(tool, Rclone):
            yield from () if durable else _with_transfers(tool)
        else:
            yield tool


def _with_transfers(rclone: Rclone) -> list[Rclone]:
    return [replace(rclone, of_many=(*rclone.of_many, "--transfers", str(number))) for number in _TRANSFERS]


def _put(tool: TransferTool, load: _Load, number: int) -> Run:
    os.sync()
    options = getattr(tool, "rclone", tool)
    key = f"{tool.name.replace(' ', '-')}-{'-'.join(getattr(options, 'of_many', ())).strip('-*.')}-{number}"
    before = own_seconds() + tool_seconds()
    took = tool.put(load.directory, key.replace("*", "").replace("--", "-"))
    return Run(load.count / took, (own_seconds() + tool_seconds() - before) / load.count)


def _upload(worker: Worker, client: ArtifactClient, load: _Load, prefix: str) -> Run:
    def run() -> None:
        result = client.upload_dir(load.directory, BUCKET, prefix).wait(WAIT)
        if result.outcomes != {"stored": load.count}:
            raise NotMeasured(f"of {load.count} files {result.outcomes} were uploaded")

    return timed(load.count, lambda: own_seconds() + server_seconds(worker), run)


@contextmanager
def _files(testbed: Testbed, count: int, size: int) -> Iterator[Path]:
    directory = testbed.incoming / f"files-{size}"
    directory.mkdir()
    try:
        for number in range(count):
            (directory / f"{number:07d}.bin").write_bytes(os.urandom(size))
        yield directory
    finally:
        shutil.rmtree(directory)
