"""A small fleet with random jobs and random faults, and what must be true when the faults end.

Everything is real: a broker, two workers with their children, a cloud behind a proxy, two directories. What is
random comes from one seed, but for the moments at which the processes do what they do.
"""

import hashlib
import json
import os
import random
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import redis
from azure.storage.blob import BlobServiceClient

from tests.conformance.targets import AZURITE_API, make_gcs_bucket, make_s3_bucket, s3_client
from tests.servers import Azurite, Ministack, Postgres, StrictGcs, Valkey
from tests.servers.postgres import connect
from tests.servers.process import freeze, thaw
from tests.servers.proxy import Cut, Damage, Delay, Fault, FaultyProxy, Lose, Request, Reset, Say
from tests.servers.worker import Beat, Worker
from tests.waiting import WITHIN
from worker import clock
from worker.catalogue import Catalogue, CatalogueError
from worker.storage import Stores
from worker.storage.config import AzureConfig, FilesystemConfig, GcsConfig, S3Config
from zot_artifact_client import ArtifactClient, BrokerUnavailable, Job
from zot_artifact_client.contract import SWEEP_LEFTOVERS, JobState, Queue, SweepLeftoversRequest
from zot_artifact_client.outgoing_messages import MESSAGES

MIB = 1 << 20
STORES = ("primary", "dr", "cloud")
SIZES = (0, 1, 3_000, 700_000, 2 * MIB, 17 * MIB)
_CANCELLED = 0.05
"""Which part of the jobs is cancelled as soon as it is sent."""
SETTINGS = {
    "jobs__lease": "2s",
    "jobs__grace": "1s",
    "retry__max_attempts": "30",
    "retry__max_crashes": "30",
    "retry__backoff": "1s",
    "retry__backoff_max": "3s",
    "breaker__open": "1s",
    "breaker__open_max": "2s",
    "sweep__recover__every": "1s",
    "sweep__recover__after": "3s",
    "sweep__recover__again": "4s",
    "sweep__cleanup__age": "1s",
    "sweep__cleanup__enabled": "false",
    "sweep__verify__every": "2s",
    "sweep__verify__period": "20s",
    "delete__grace": "2s",
    "sweep__purge__every": "2s",
    "sweep__reconcile__every": "5s",
}


class S3:
    """The S3 server of a fleet."""

    def __init__(self, server: Ministack, bucket: str) -> None:
        self.port, self._server, self._bucket = server.port, server, bucket
        make_s3_bucket(server, bucket)

    def config(self, origin: str) -> dict[str, object]:
        """Return the configuration of a store that reaches the server by this origin."""
        return {
            "type": "s3", "bucket": self._bucket, "endpoint": origin, "part_size": "5MiB",
            "access_key_id": self._server.access_key_id, "secret_access_key": self._server.secret_access_key,
        }  # fmt: skip

    def open_uploads(self) -> list[str]:
        """Return the paths of the uploads that are open."""
        found = s3_client(self._server).list_multipart_uploads(Bucket=self._bucket).get("Uploads", [])
        return [upload["Key"] for upload in found]


class Gcs:
    """The Cloud Storage of a fleet."""

    def __init__(self, server: StrictGcs, bucket: str) -> None:
        self.port, self._bucket = server.port, bucket
        make_gcs_bucket(server, bucket)

    def config(self, origin: str) -> dict[str, object]:
        """Return the configuration of a store that reaches the server by this origin."""
        return {
            "type": "gcs", "bucket": self._bucket, "endpoint": origin, "project": "test", "anonymous": True,
            "part_size": "5MiB",
        }  # fmt: skip

    def open_uploads(self) -> list[str]:
        """Return none: the emulator does not list them."""
        return []


class Azure:
    """The Azure Blob Storage of a fleet."""

    def __init__(self, server: Azurite, container: str) -> None:
        self.port, self._server, self._container = server.port, server, container
        with BlobServiceClient.from_connection_string(server.connection_string, api_version=AZURITE_API) as service:
            service.create_container(container)

    def config(self, origin: str) -> dict[str, object]:
        """Return the configuration of a store that reaches the server by this origin."""
        return {
            "type": "azure", "container": self._container, "account_url": f"{origin}/{self._server.account}",
            "account_key": self._server.account_key, "part_size": "5MiB", "api_version": AZURITE_API,
        }  # fmt: skip

    def open_uploads(self) -> list[str]:
        """Return none: the emulator lists blocks of blobs that were deleted."""
        return []


_CONFIGS = {"s3": S3Config, "gcs": GcsConfig, "azure": AzureConfig}


class FaultInjector:
    """What the network between the workers and the cloud is like at the moment."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.faults: tuple[Fault, ...] = ()

    def __call__(self, request: Request) -> Fault:
        return self._rng.choice(self.faults) if self.faults and self._rng.random() < 0.4 else None

    def calm(self) -> None:
        self.faults = ()


@dataclass
class Tally:
    """The faults of a run, and the outcomes of its jobs."""

    jobs: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    states: Counter[str] = field(default_factory=Counter)
    attempts: Counter[int] = field(default_factory=Counter)
    refused_to_send: int = 0
    lost: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


class Fleet:
    """The fleet, its clients and its faults, as a context manager.

    Args:
        directory: for its files.
        cloud: its third store.
        seed: of what is random.
        postgres: the server of its catalogue; without one the catalogue is a file of SQLite.
    """

    def __init__(self, directory: Path, cloud: S3 | Gcs | Azure, seed: int, postgres: Postgres | None = None) -> None:
        self.rng = random.Random(seed)
        self.tally = Tally()
        self._cloud = cloud
        self._home = directory
        self._sources = directory / "incoming"
        self._postgres = postgres
        self._catalogue_url = postgres.url() if postgres else f"sqlite:///{directory / 'catalogue.sqlite3'}"
        self.injector = FaultInjector(random.Random(seed + 1))
        self._valkey = Valkey(directory / "valkey")
        self._proxy = FaultyProxy(cloud.port, self.injector)
        self._uploads: dict[str, list[str]] = {}
        self._digests: dict[str, str] = {}
        self._jobs: dict[str, Job[Any]] = {}
        self._kinds: dict[str, str] = {}
        self._rotten: set[str] = set()
        self._sent: list[str] = []
        """The keys of the last upload."""
        self._keys: dict[str, list[str]] = {}
        """The keys of each upload, by its job."""
        self._uploaded: set[str] = set()
        self._deleted: set[str] = set()
        """Keys of which a delete was sent, and prefixes of batches of deletes."""

    def __enter__(self) -> Self:
        self._sources.mkdir(parents=True)
        for store in ("primary", "dr"):
            (self._home / store).mkdir()
        self._valkey.start()
        self._proxy.__enter__()
        self.catalogue = Catalogue(self._catalogue_url)
        cloud = self._cloud.config(f"http://127.0.0.1:{self._cloud.port}")
        self.stores = Stores(
            {
                "primary": FilesystemConfig(root=self._home / "primary"),
                "dr": FilesystemConfig(root=self._home / "dr"),
                "cloud": _CONFIGS[str(cloud["type"])].model_validate(cloud),
            },
            spool_dir=self._home,
        )
        self._workers = [self._process(Worker, "a"), self._process(Worker, "b")]
        self._beat = self._process(Beat, "beat")
        for process in (*self._workers, self._beat):
            process.start()
        self.client = ArtifactClient(self._valkey.url)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.client.close()
        for process in (self._beat, *self._workers):
            process.stop()
        self.stores.close()
        self.catalogue.close()
        self._valkey.stop()
        self._proxy.__exit__(*exc_info)

    def _process(self, kind: type[Worker], name: str) -> Worker:
        stores = {store: {"type": "filesystem", "root": str(self._home / store)} for store in ("primary", "dr")}
        settings = SETTINGS | {
            "catalogue": self._catalogue_url,
            "stores": json.dumps({**stores, "cloud": self._cloud.config(self._proxy.endpoint)}),
            "sources__roots": json.dumps([str(self._sources)]),
        }
        return kind(self._home / name, self._valkey.url, **settings)

    # What users do

    def work(self) -> None:
        """Send one job of a random kind, and cancel one now and then."""
        key = f"k{self.rng.randrange(24)}"
        sends: dict[str, tuple[int, Callable[[], Job[Any]]]] = {
            "upload": (6, lambda: self._upload(key)),
            "replicate": (3, lambda: self.client.replicate("data", key, to=self.rng.choice(STORES))),
            "verify": (3, lambda: self.client.verify("data", key)),
            "delete": (1, lambda: self._delete(key)),
            "upload of a directory": (2, lambda: self._upload_directory(f"d{self.rng.randrange(8)}")),
            "batch": (2, self._batch),
        }
        kind = self.rng.choices(list(sends), [weight for weight, _ in sends.values()])[0]
        try:
            job = sends[kind][1]()
            if self.rng.random() < _CANCELLED:
                job.cancel()
        except BrokerUnavailable:
            self.tally.refused_to_send += 1
            return
        self._jobs[job.id] = job
        self._kinds[job.id] = kind
        if kind.startswith("upload"):
            self._keys[job.id] = self._sent
        self.tally.jobs[kind] += 1

    def _upload(self, key: str) -> Job[Any]:
        content = self.rng.randbytes(self.rng.choice(SIZES)) + os.urandom(8)
        digest = hashlib.sha256(content).hexdigest()
        path = self._sources / f"{digest[:16]}.bin"
        path.write_bytes(content)
        self._uploads.setdefault(key, []).append(digest)
        stores = self.rng.choice((STORES, ("primary", "cloud"), ("primary",)))
        self._sent = [key]
        return self.client.upload(path, "data", key, stores=stores, idempotency_key=digest)

    def _upload_directory(self, prefix: str) -> Job[Any]:
        directory = self._sources / f"directory-{self.rng.randrange(1 << 32):08x}"
        directory.mkdir()
        self._sent = []
        for number in range(self.rng.randrange(1, 40)):
            content = self.rng.randbytes(self.rng.choice(SIZES[:3])) + os.urandom(8)
            (directory / f"{number}").write_bytes(content)
            self._sent.append(f"{prefix}/{number}")
            self._uploads.setdefault(f"{prefix}/{number}", []).append(hashlib.sha256(content).hexdigest())
        return self.client.upload_dir(directory, "data", prefix, stores=self.rng.choice((STORES, ("primary",))))

    def _batch(self) -> Job[Any]:
        verb, prefix = self.rng.choice(("replicate", "verify", "delete")), f"d{self.rng.randrange(8)}/"
        to = self.rng.choice(STORES) if verb == "replicate" else None
        stores = self.rng.choice((None, "dr", "cloud")) if verb == "delete" else None
        if verb == "delete" and stores is None:
            self._deleted.add(prefix)
        return self.client.batch(verb, "data", prefix, to=to, stores=stores)

    def _delete(self, key: str) -> Job[Any]:
        stores = self.rng.choice((None, "dr", "cloud"))
        if stores is None:
            self._deleted.add(key)
        return self.client.delete("data", key, stores=stores)

    def undelete(self) -> None:
        """Bring back an artifact that was deleted, if its bytes are not purged yet."""
        with suppress(CatalogueError):
            for deleted in self.catalogue.deletions.page(("", ""))[:1]:
                self.catalogue.deletions.undo(deleted.bucket, deleted.key, now=clock.now())

    # What happens to them

    def misfortune(self) -> None:
        """Let one random thing go wrong."""
        happen = self.rng.choice(
            (
                self.kill_child, self.kill_child, self.kill_worker, self.kill_beat, self.end_worker, self.pause_worker,
                self.restart_broker, self.lose_messages, self.double_message, self.hostile_message,
                self.storm, self.storm, self.unplug, self.lock_catalogue, self.rot, self.restart_catalogue,
                self.undelete,
            )
        )  # fmt: skip
        self.tally.faults[happen.__name__] += 1
        happen()

    def look_after_workers(self) -> None:
        """Start a worker again that has ended by itself, as its supervisor would.

        Celery ends a worker on purpose whose child is killed before it is ready. That any other worker ends is wrong.
        """
        for worker in self._workers:
            if not worker.running:
                log = worker.log
                if "Could not start worker processes" in log[-20_000:]:
                    self.tally.faults["child killed at the start"] += 1
                else:
                    self.tally.wrong.append(f"worker {worker.directory.name} ended by itself")
                worker.restart()
        if not self._beat.running:
            self.tally.wrong.append("beat ended by itself")
            self._beat.restart()

    def _any_worker(self) -> Worker:
        return self.rng.choice(self._workers)

    def kill_child(self) -> None:
        for pid in self._any_worker().children()[:1]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def kill_worker(self) -> None:
        worker = self._any_worker()
        worker.kill()
        worker.start()

    def kill_beat(self) -> None:
        self._beat.kill()
        self._beat.start()

    def end_worker(self) -> None:
        worker = self._any_worker()
        worker.stop()
        worker.start()

    def pause_worker(self) -> None:
        """Let a worker and its children sleep through their leases, but not with the catalogue's lock in hand."""
        worker = self._any_worker()
        pids = (worker.pid, *worker.children())
        with self._locked_catalogue():
            freeze(*pids)
        time.sleep(4)  # the fault: longer than a lease
        thaw(*pids)

    def restart_broker(self) -> None:
        """Kill the broker, and start it again."""
        self._valkey.restart()

    def lose_messages(self) -> None:
        """Take what waits out of the queues, as a worker does that dies before it has marked it as taken."""
        with redis.Redis(port=self._valkey.port) as broker:
            broker.rpop(self.rng.choice([queue.value for queue in Queue]), 3)

    def double_message(self) -> None:
        with redis.Redis(port=self._valkey.port) as broker:
            messages = list(broker.hvals(MESSAGES))
            if messages:
                broker.lpush("transfer", self.rng.choice(messages))

    def hostile_message(self) -> None:
        hostile = (b"[]", b"nonsense", b'{"body": "e30=", "headers": {"task": "artifact.verify.v1"}, "properties": {}}')
        with redis.Redis(port=self._valkey.port) as broker:
            broker.lpush("interactive", self.rng.choice(hostile))

    def storm(self) -> None:
        """Let the network to the cloud be bad until the next storm or calm."""
        self.injector.faults = self.rng.choice(
            (
                (Say(503),), (Say(429, b"", {"Retry-After": "1"}),), (Lose(),), (Cut(100),), (Reset(),), (Delay(3),),
                (Damage(),), (Lose(), Say(503), Reset()), (),
            )
        )  # fmt: skip

    def unplug(self) -> None:
        """Take the directory of a store away for a time."""
        root = self._home / "dr"
        root.rename(self._home / "dr-unplugged")
        time.sleep(1.5)  # the fault: jobs meet the missing root meanwhile
        (self._home / "dr-unplugged").rename(root)

    def lock_catalogue(self) -> None:
        """Let another program keep the write lock of the catalogue for a time."""
        with self._locked_catalogue():
            time.sleep(3)  # the fault: longer than a lease

    @contextmanager
    def _locked_catalogue(self) -> Iterator[None]:
        """Keep every writer out of the catalogue for a `with` block."""
        if self._postgres:
            with connect(self._catalogue_url) as ours, ours.transaction():
                ours.execute("SET LOCAL deadlock_timeout = '1min'")  # of two that wait for each other, the worker fails
                ours.execute("LOCK TABLE jobs, artifacts, copies IN EXCLUSIVE MODE")
                yield
        else:
            with closing(sqlite3.connect(self._home / "catalogue.sqlite3", isolation_level=None, timeout=60)) as ours:
                ours.execute("BEGIN IMMEDIATE")
                yield

    def restart_catalogue(self) -> None:
        """Kill the server of the catalogue, and start it again."""
        if self._postgres:
            self._postgres.restart()

    def rot(self) -> None:
        """Flip a bit of a file, so that nothing but reading it tells."""
        data = self._home / "dr" / "data"
        files = [path for path in data.rglob("*") if path.suffix != ".sha256" and path.is_file()]
        if files:
            path = self.rng.choice(sorted(files))
            with suppress(OSError), path.open("r+b") as file:
                if not (first := file.read(1)):
                    return  # the lock of a write
                file.seek(0)
                file.write(bytes([first[0] ^ 1]))
                self._rotten.add(path.relative_to(data).as_posix())

    # What must be true afterwards

    def live(self, seconds: float) -> None:
        """Work and suffer for this long."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for _ in range(self.rng.randrange(1, 5)):
                self.work()
            if self.rng.random() < 0.6:
                self.misfortune()
            self.look_after_workers()
            time.sleep(self.rng.random())  # a pace that is no pattern
        self.injector.calm()

    def settle(self, within: float = WITHIN) -> None:
        """Wait until every accepted job has ended, and its client is told the same end; others are lost."""
        deadline = time.monotonic() + within
        waiting = dict(self._jobs)
        while waiting and time.monotonic() < deadline:
            self.look_after_workers()
            for id_ in list(waiting):
                record = self.catalogue.ledger.get(id_)
                ended = record is not None and JobState(record.state).terminal
                if record is not None and ended and self._told(id_) == record.state and not self._items_of(id_):
                    self.tally.states[f"{record.kind} {record.state}"] += 1
                    self.tally.attempts[record.attempts] += 1
                    if record.state == JobState.SUCCEEDED:
                        self._uploaded.update(self._keys.pop(id_, ()))
                    del waiting[id_]
            time.sleep(0.2)  # the ledger and the workers have to be polled
        self.tally.lost += [
            f"{self._kinds[id_]} {id_} {self._state(id_)}; its client is told {self._told(id_)}" for id_ in waiting
        ]
        self._jobs.clear()

    def _items_of(self, batch: str) -> list[str]:
        """Return the jobs of a batch that have not ended."""
        return [item.job for item in self.catalogue.batches.in_flight(batch) if not item.state.terminal]

    def _told(self, id_: str) -> JobState | None:
        """Return the state that a client of the job sees now; None if the broker is away."""
        with suppress(BrokerUnavailable):
            return self._jobs[id_].state
        return None

    def _state(self, id_: str) -> str:
        record = self.catalogue.ledger.get(id_)
        return f"{record.state} {record.error}" if record else "not in the ledger"

    def judge(self) -> None:
        """Check stores, ledger and log, and report everything that is not as promised."""
        self._sweep()
        self.tally.wrong += [*self._versions(), *self._lost(), *self._copies(), *self._orphans(), *self._surprises()]
        broken = self.catalogue.verifications.first_broken()
        if broken is not None:
            self.tally.wrong.append(f"the log is broken at row {broken}")

    def _sweep(self) -> None:
        time.sleep(1.5)  # what the last job left has to be as old as the sweep wants it
        self.client.submit(SWEEP_LEFTOVERS, SweepLeftoversRequest()).wait(WITHIN)

    def _versions(self) -> Iterator[str]:
        """Each upload made one version or none, and every version is of an upload."""
        for key, uploaded in self._uploads.items():
            versions: list[str] = []
            while artifact := self.catalogue.artifacts.version("data", key, len(versions) + 1):
                versions.append(artifact.digest.sha256)
            for sha256, count in Counter(versions).items():
                if sha256 not in uploaded:
                    yield f"data/{key} has a version of {sha256} that was never uploaded"
                if count > 1:
                    yield f"data/{key} has {count} versions of {sha256}: its upload happened more than once"

    def _lost(self) -> Iterator[str]:
        """What was uploaded and never deleted is there: every upload goes to `primary`, whose bytes nothing damages."""
        for key in sorted(self._uploaded):
            if key in self._deleted or f"{key.partition('/')[0]}/" in self._deleted:
                continue
            current = self.catalogue.artifacts.current("data", key)
            copy = self.catalogue.artifacts.copies(current).get("primary") if current else None
            if copy is None or not copy.state.good:
                yield f"data/{key} was uploaded and never deleted: {current and copy}"

    def _copies(self) -> Iterator[str]:
        """Every copy that the catalogue relies on is right, read in full; what was made rotten may be found so."""
        for artifact in self.catalogue.artifacts.page("data"):
            for copy in self.catalogue.artifacts.copies(artifact).values():
                if not copy.state.good:
                    continue
                seen = self.stores[copy.store].verify_object(artifact.bucket, artifact.key, artifact.digest)
                if seen.verdict != "verified" and not (copy.store == "dr" and artifact.key in self._rotten):
                    yield f"{copy.store}: {artifact.path} is {copy.state} in the catalogue and {seen.verdict}"

    def _is_begun(self, store: str, key: str) -> bool:
        """Return whether a store has the bytes of the current version, whose copy is not recorded yet."""
        current = self.catalogue.artifacts.current("data", key)
        begun = self.catalogue.artifacts.unfinished_versions(store, "data", key)
        return any(
            version == current and self.stores[store].verify_object("data", key, version.digest).verdict == "verified"
            for version in begun
        )

    def _orphans(self) -> Iterator[str]:
        """The stores hold nothing that the catalogue does not know, and no upload is left open.

        The store may do a write after its job has failed: of a current version, `sweep.replicate` records it later.
        An upload to the cloud whose beginning had no answer, and has an intent, is removed by the first cleanup five
        minutes later. A purge leaves a file that rotted after its last read, because another program has changed it.
        """
        for name in STORES:
            store = self.stores[name]
            for found in store.list_objects("data"):
                if name == "dr" and found.key in self._rotten:
                    continue
                held = self.catalogue.artifacts.version_in_store(name, "data", found.key)
                if held is None and self._is_begun(name, found.key):
                    continue
                if held is None and store.object_exists("data", found.key):  # the purge goes on meanwhile
                    yield f"{name}: data/{found.key} is not in the catalogue"
        for name, description in self._left_behind():
            yield f"{name}: {description} was left behind"
        intended = Counter(f"{each.bucket}/{each.key}" for each in self.catalogue.transfers.intents("cloud"))
        for path in self._cloud.open_uploads():
            intended[path] -= 1
            if intended[path] < 0:
                yield f"cloud: the upload of {path} was left open"

    def _surprises(self) -> Iterator[str]:
        """No job has met what the worker does not know: an error of its own, or one of an SDK that has no meaning."""
        for record in self.catalogue.job_admin.find((), limit=None):
            told = json.dumps([record.error, record.result])
            if "a bug of the worker" in told or "unexpected error" in told:
                yield f"{record.kind} {record.id}: {record.error or record.result}"

    def _left_behind(self) -> set[tuple[str, str]]:
        """Return what no cleanup removes and no running repair or sweep ends, by store, other than the cloud."""
        deadline, left = time.monotonic() + WITHIN, self._open_uploads()
        while left and time.monotonic() < deadline:
            self._sweep()
            left &= self._open_uploads()
        return left

    def _open_uploads(self) -> set[tuple[str, str]]:
        names = [name for name in STORES if name != "cloud"]
        return {(name, each.description) for name in names for each in self.stores[name].iter_stale_uploads()}
