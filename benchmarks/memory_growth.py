"""Growth of a worker's child over thousands of mixed jobs, and over a hundred pages."""

from pathlib import Path

from benchmarks.harness.result_rows import NotMeasured, Row, Samples, Target
from benchmarks.harness.testbed import KIB, WAIT, Testbed
from tests.servers.worker import Worker
from zot_artifact_client import ArtifactClient, JobFailed
from zot_artifact_client.contract import DeleteRequest, Message, UploadRequest, VerifyRequest

MOST = Target(16, unit=" MiB")
BUCKET = "growth"
_ROUND = 10
"""Jobs of one round: three uploads, three verifies, three deletes, and one that fails."""
_PAGE = 20
"""Objects of a page, so that a hundred pages need few objects."""


def measure(testbed: Testbed) -> list[Row]:
    """Measure the memory that the child has not given back at the end, against the same after a tenth of the jobs."""
    jobs, pages = (1_000, 20) if testbed.quick else (10_000, 100)
    with (
        testbed.file("growth.bin", 16 * KIB) as source,
        testbed.worker("growth", 1, page__objects=str(_PAGE)) as worker,
        testbed.client() as client,
    ):
        _run_jobs(client, source, 0, jobs // 10)
        before = _held(worker)
        _run_jobs(client, source, jobs // 10, jobs)
        after_jobs = _held(worker)
        uploads = [UploadRequest(source=str(source), bucket="pages", key=f"{n:05}") for n in range(10 * _PAGE)]
        _wait(client, uploads)
        client.batch("verify", "pages").wait(WAIT)
        before_pages = _held(worker)
        for _ in range(pages // 10):
            client.batch("verify", "pages").wait(WAIT)
        after_pages = _held(worker)
    return [
        Row(f"growth of a child over {jobs * 9 // 10} mixed jobs", Samples([after_jobs - before], " MiB"), target=MOST),
        Row(f"growth of a child over {pages} pages", Samples([after_pages - before_pages], " MiB"), target=MOST),
    ]


def _run_jobs(client: ArtifactClient, source: Path, first: int, last: int) -> None:
    """Run mixed jobs, a few hundred at a time: of each artifact an upload, then a verify, then a delete."""
    for begin in range(first, last, 100 * _ROUND):
        numbers = range(begin // _ROUND, min(begin + 100 * _ROUND, last) // _ROUND)
        keys = [f"{number}-{part}" for number in numbers for part in range(3)]
        failing = [UploadRequest(source=f"{source}-absent", bucket=BUCKET, key=f"{number}") for number in numbers]
        _wait(client, [UploadRequest(source=str(source), bucket=BUCKET, key=key) for key in keys])
        _wait(client, [*failing, *(VerifyRequest(bucket=BUCKET, key=key) for key in keys)], failing=len(failing))
        _wait(client, [DeleteRequest(bucket=BUCKET, key=key, allow_last=True) for key in keys])


def _wait(client: ArtifactClient, requests: list[Message], *, failing: int = 0) -> None:
    failed = 0
    for job in client.submit_many(requests):
        try:
            job.wait(WAIT)
        except JobFailed:
            failed += 1
    if failed != failing:
        raise NotMeasured(f"{failed} jobs failed, {failing} were expected to")


def _held(worker: Worker) -> float:
    """Return the memory that the worker's only child holds now, in MiB."""
    children = worker.children()
    if len(children) != 1:
        raise NotMeasured(f"a worker with one child was expected, it has {len(children)}")
    for line in Path(f"/proc/{children[0]}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise NotMeasured("the kernel does not tell how much memory a process holds")
