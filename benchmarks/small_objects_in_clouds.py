"""Verifying and replicating many small objects in cloud stores: batches on two worker processes, against rclone."""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks.harness.processor_time import Run, as_samples, server_seconds, timed, tool_seconds
from benchmarks.harness.result_rows import FAILURES, Line, Missing, NotMeasured, Row, Samples, Target
from benchmarks.harness.running_stores import STORES, RunningStore, filesystem, s3_ministack, s3_rclone
from benchmarks.harness.testbed import KIB, WAIT, Testbed
from benchmarks.harness.transfer_in_process import BUCKET
from benchmarks.harness.transfer_tools import Rclone
from tests.servers.process import find_server
from tests.servers.worker import Worker
from zot_artifact_client import ArtifactClient
from zot_artifact_client.contract import BATCH, BatchRequest

VERIFIED, REPLICATED, FEW = 4_000, 2_000, 500
CHECKERS = (8, 32)
_SIZE = 16 * KIB
_PAIRS = {
    "a directory to s3 (ministack)": (filesystem, s3_ministack),
    "a directory to s3 (rclone serve s3)": (filesystem, s3_rclone),
    "s3 (ministack) to s3 (rclone serve s3)": (s3_ministack, s3_rclone),
}


def measure_verify(testbed: Testbed) -> Iterator[Line]:
    """Verify a batch in each cloud store, let rclone download and hash the same objects, compare within each round."""
    count, rounds = (FEW, testbed.pairs or 2) if testbed.quick else (VERIFIED, testbed.pairs or 5)
    for name in STORES:
        what = f"verify {count:,} objects of 16 KiB in {name}"
        if name == "filesystem" or not testbed.wants(what):
            continue
        try:
            yield from _verified(testbed, what, name, count, rounds)
        except FAILURES as error:
            yield Missing(what, str(error))


def _verified(testbed: Testbed, what: str, name: str, count: int, rounds: int) -> Iterator[Row]:
    ours: list[Run] = []
    best: list[Run] = []
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=testbed.directory)))
        place = stack.enter_context(STORES[name](home))
        worker, client = _worker(testbed, stack, {"place": place.config}, ["place"])
        _fill(testbed, client, count)
        for _ in range(rounds + 1):
            best.append(max(_hashed(place, count, number) for number in CHECKERS))
            wanted = BatchRequest(verb="verify", bucket=BUCKET, prefix="filled/")
            ours.append(_batch(worker, client, wanted, "verified", count))
    target = Target(1.15, at_least=True)
    against = f"{what}, against rclone hashsum --download"
    yield Row(against, as_samples(ours[1:], " a second"), as_samples(best[1:], " a second"), target)
    yield Row(f"{what}: processor time of each copy", _processor(ours[1:]), target=Target(0.4, unit=" ms"))


def measure_replicate(testbed: Testbed) -> Iterator[Line]:
    """Replicate a batch between stores, let rclone copy and check the same objects, and compare within each round."""
    count, rounds = (FEW, testbed.pairs or 2) if testbed.quick else (REPLICATED, testbed.pairs or 5)
    for name in _PAIRS:
        what = f"replicate {count:,} objects of 16 KiB from {name}"
        if not testbed.wants(what):
            continue
        try:
            yield from _replicated(testbed, what, name, count, rounds)
        except FAILURES as error:
            yield Missing(what, str(error))


def _replicated(testbed: Testbed, what: str, name: str, count: int, rounds: int) -> Iterator[Row]:
    ours: list[Run] = []
    yardstick: list[Run] = []
    with ExitStack() as stack:
        first, second = (
            stack.enter_context(opened(Path(stack.enter_context(tempfile.TemporaryDirectory(dir=testbed.directory)))))
            for opened in _PAIRS[name]
        )
        worker, client = _worker(testbed, stack, {"from": first.config, "to": second.config}, ["from"])
        for number in range(rounds + 1):
            prefix = f"filled-{number}"
            _fill(testbed, client, count, prefix)
            yardstick.append(_copied_and_checked(first, second, prefix, count))
            wanted = BatchRequest(verb="replicate", bucket=BUCKET, prefix=f"{prefix}/", to=("to",))
            ours.append(_batch(worker, client, wanted, "stored", count))
    against = f"{what}, against rclone copy and check --download"
    target = Target(1.5, at_least=True)
    yield Row(against, as_samples(ours[1:], " a second"), as_samples(yardstick[1:], " a second"), target)
    yield Row(f"{what}: processor time of each copy", _processor(ours[1:]))


def _processor(runs: Sequence[Run]) -> Samples:
    return Samples([1000 * run.each for run in runs], " ms", 3)


def _copied_and_checked(first: RunningStore, second: RunningStore, prefix: str, count: int) -> Run:
    """Let rclone copy the objects to another prefix of the second store, and compare them."""
    source, target = (_named(name, place) for name, place in (("FIRST", first), ("SECOND", second)))
    places = (f"{source[0]}/{prefix}", f"{target[0]}-of-rclone/{prefix}")
    environment = {**source[1], **target[1]}

    def run() -> None:
        for verb in (("copy", "--transfers", "32"), ("check", "--download", "--checkers", "32")):
            _run((*verb[1:], "--exclude", "*.sha256"), verb[0], places, environment)

    return timed(count, tool_seconds, run)


def _named(name: str, place: RunningStore) -> tuple[str, Mapping[str, str]]:
    """Return where the objects of a store are for rclone, and the variables that configure it under a name."""
    config = place.config
    if config["type"] == "filesystem":
        return f"{config['root']}/{BUCKET}", {}
    values = {
        "TYPE": "s3", "PROVIDER": "Other", "ENDPOINT": config["endpoint"], "FORCE_PATH_STYLE": "true",
        "NO_CHECK_BUCKET": "true", "ACCESS_KEY_ID": config["access_key_id"],
        "SECRET_ACCESS_KEY": config["secret_access_key"],
    }  # fmt: skip
    variables = {f"RCLONE_CONFIG_{name}_{key}": str(value) for key, value in values.items()}
    return f"{name}:{config['bucket']}/{BUCKET}", variables


def _run(options: Sequence[str], verb: str, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
    command = (find_server("rclone"), verb, *arguments, *options)
    done = subprocess.run(
        command, env={**os.environ, "RCLONE_CONFIG": "/dev/null", **environment}, capture_output=True, check=False
    )
    if done.returncode:
        raise NotMeasured(f"rclone {verb} ended with {done.returncode}: {done.stderr[-300:].decode()}")


def _hashed(place: RunningStore, count: int, checkers: int) -> Run:
    """Let rclone download and hash the objects of a store."""
    rclone = next(tool for tool in place.tools if isinstance(tool, Rclone))
    options = ("--download", "--checkers", str(checkers), *rclone.options)
    arguments = ("sha256", f"{rclone.remote}/filled")
    return timed(count, tool_seconds, lambda: _run(options, "hashsum", arguments, rclone.secrets))


def _worker(
    testbed: Testbed, stack: ExitStack, stores: Mapping[str, object], placement: Sequence[str]
) -> tuple[Worker, ArtifactClient]:
    settings = {"stores": json.dumps(stores), "placement": json.dumps(placement)}
    return stack.enter_context(testbed.worker("bulk", 2, **settings)), stack.enter_context(testbed.client())


def _fill(testbed: Testbed, client: ArtifactClient, count: int, prefix: str = "filled") -> None:
    """Upload so many files below a prefix."""
    directory = testbed.incoming / prefix
    directory.mkdir()
    try:
        for number in range(count):
            (directory / f"{number:07d}.bin").write_bytes(os.urandom(_SIZE))
        result = client.upload_dir(directory, BUCKET, prefix).wait(WAIT)
    finally:
        shutil.rmtree(directory)
    if result.outcomes != {"stored": count}:
        raise NotMeasured(f"of {count} files {result.outcomes} were uploaded")


def _batch(worker: Worker, client: ArtifactClient, wanted: BatchRequest, outcome: str, count: int) -> Run:
    def run() -> None:
        result = client.submit(BATCH, wanted).wait(WAIT)
        if result.outcomes != {outcome: count}:
            raise NotMeasured(f"of {count} objects {result.outcomes}")

    return timed(count, lambda: server_seconds(worker), run)
