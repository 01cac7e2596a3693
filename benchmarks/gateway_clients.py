"""What clients of the gateway get: verified downloads, enqueueing, hits of the cache, and staged uploads."""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx

from benchmarks.harness.bare_celery import sync
from benchmarks.harness.result_rows import Row, Samples
from benchmarks.harness.testbed import GIB, MIB, WAIT, Testbed, shown
from benchmarks.harness.transfer_tools import S5cmd
from tests.conformance.targets import make_s3_bucket
from tests.servers.gateway import GatewayProcess
from tests.servers.process import find_server
from tests.servers.s3 import RcloneS3, S3Server
from worker import clock
from worker.catalogue import Catalogue
from worker.gateway.access import TokenVerb, new_token
from zot_artifact_client import ArtifactClient, ChunkCache

_ROUNDS = 3
_BUCKET = "staged-uploads"
_BLOCK = 1 << 20


class RcloneHttp(S3Server):
    """`rclone serve http` of a directory."""

    name = "rclone-http"

    def __init__(self, directory: Path, served: Path) -> None:
        super().__init__(directory)
        self._served = served

    def command(self) -> Sequence[str]:
        address = f"127.0.0.1:{self.port}"
        return (find_server("rclone"), "serve", "http", "--addr", address, "--read-only", str(self._served))


def measure(testbed: Testbed) -> Iterator[Row]:
    """Serve a large artifact and the same file, enqueue jobs over the gateway, and read from a warm cache."""
    size = 64 * MIB if testbed.quick else GIB
    testbed.need(4 * size)
    with (
        testbed.worker("clients", 2) as worker,
        testbed.file("large.bin", size) as file,
        testbed.client() as broker,
        GatewayProcess(testbed.directory / "gateway", worker.home, testbed.valkey.url) as gateway,
        RcloneHttp(testbed.directory / "rclone-http", testbed.incoming) as plain,
    ):
        broker.upload(str(file), "bench", "large.bin", stores=["primary"]).wait(WAIT)
        headers = {"Authorization": f"Bearer {_token(worker.home)}"}
        what = f"gateway: download of {shown(size)}, verified by chunk, against rclone serve http"
        yield _download(what, f"{gateway.url}/v1/objects/bench/large.bin", headers, f"{plain.endpoint}/large.bin", size)
        yield _enqueue(gateway.url, headers, 200 if testbed.quick else 2000)
        yield from _cache(testbed, gateway.url, headers["Authorization"].partition(" ")[2], file, size)
    yield _staged(testbed, 64 * MIB if testbed.quick else GIB)


def _staged(testbed: Testbed, size: int) -> Row:
    """Send a file to signed URLs of a store, past the gateway, against `s5cmd cp` of it to the same server.

    Ours computes the SHA-256 first, in the same time, and returns once the gateway has sent the upload job.
    """
    with (
        testbed.worker("staged", 1) as worker,
        testbed.file("staged.bin", size) as file,
        RcloneS3(testbed.directory / "rclone-s3") as server,
    ):
        worker.stop()  # the parts stay where they are: it would read them at the same time
        secrets = {
            "AWS_ACCESS_KEY_ID": server.access_key_id, "AWS_SECRET_ACCESS_KEY": server.secret_access_key,
        }  # fmt: skip
        make_s3_bucket(server, _BUCKET)
        cloud = {
            "type": "s3", "bucket": _BUCKET, "endpoint": server.endpoint,
            "access_key_id": server.access_key_id, "secret_access_key": server.secret_access_key,
        }  # fmt: skip
        gateway = GatewayProcess(
            testbed.directory / "staging-gateway", worker.home, testbed.valkey.url,
            stores=json.dumps({"cloud": cloud}), placement='["cloud"]', gateway__staging_store="cloud",
        )  # fmt: skip
        tool = S5cmd(f"s3://{_BUCKET}", server.endpoint, secrets)
        ours, theirs = [], []
        with gateway, ArtifactClient(gateway=gateway.url, token=_token(worker.home)) as client:
            for number in range(_ROUNDS):
                sync(file)
                began = time.perf_counter()
                client.upload_file(file, "bench", f"staged-{number}.bin")
                ours.append(size / MIB / (time.perf_counter() - began))
                sync(file)
                theirs.append(size / MIB / tool.put(file, f"plain-{number}.bin"))
    what = f"staged upload of {shown(size)} to signed URLs, hashed before, against s5cmd cp"
    return Row(what, Samples(ours, " MiB/s"), Samples(theirs, " MiB/s"))


def _token(home: Path) -> str:
    with _catalogue(home) as catalogue:
        record, text = new_token("bench", ["bench"], list(TokenVerb), now=clock.now(), expires_at=None)
        catalogue.access_tokens.add(record)
    return text


@contextmanager
def _catalogue(home: Path) -> Iterator[Catalogue]:
    opened = Catalogue(f"sqlite:///{home / 'catalogue.sqlite3'}")
    try:
        yield opened
    finally:
        opened.close()


def _download(what: str, ours: str, headers: dict[str, str], theirs: str, size: int) -> Row:
    rates: tuple[list[float], list[float]] = ([], [])
    for _ in range(_ROUNDS):
        for rate, url, given in ((rates[0], ours, headers), (rates[1], theirs, {})):
            began, received = time.perf_counter(), 0
            with httpx.stream("GET", url, headers=given, timeout=WAIT, trust_env=False) as answer:
                answer.raise_for_status()
                for piece in answer.iter_raw(_BLOCK):
                    received += len(piece)
            assert received == size
            rate.append(size / MIB / (time.perf_counter() - began))
    return Row(what, Samples(rates[0], " MiB/s"), Samples(rates[1], " MiB/s"))


def _enqueue(url: str, headers: dict[str, str], count: int) -> Row:
    took = []
    with httpx.Client(base_url=url, headers=headers, timeout=60, trust_env=False) as client:
        for number in range(count):
            began = time.perf_counter()
            client.post("/v1/jobs/verify", json={"bucket": "bench", "key": f"none-{number}"}).raise_for_status()
            took.append((time.perf_counter() - began) * 1000)
            time.sleep(0.01)  # below the rate of one token
    p99 = sorted(took)[int(len(took) * 0.99)]
    return Row(f"gateway: p99 of {count} enqueues in turn", Samples([p99], " ms", 1))


def _cache(testbed: Testbed, url: str, token: str, file: Path, size: int) -> Iterator[Row]:
    """Read a warm cache in one thread, against plain reads of the same file; both come from the page cache."""
    cache = ChunkCache(testbed.directory / "cache", max_size=2 * size, min_free=0)
    ours, plain = [], []
    with ArtifactClient(gateway=url, token=token, cache=cache) as client:
        client.warm("bench", "large.bin")
        for _ in range(_ROUNDS):
            began = time.process_time()
            with client.open("bench", "large.bin") as opened:
                while opened.read(_BLOCK):
                    pass
            ours.append(size / MIB / (time.process_time() - began))
            began = time.process_time()
            with file.open("rb", buffering=0) as direct:
                while direct.read(_BLOCK):
                    pass
            plain.append(size / MIB / (time.process_time() - began))
    cache.drop()
    what = f"cache: hits of {shown(size)}, verified, per second of one core, against plain reads"
    yield Row(what, Samples(ours, " MiB/s"), Samples(plain, " MiB/s"))
