"""A tiny worker that speaks the contract, run by `celery -A` (see test_client.py); the key says what a job does.

`hold/…`: report progress, then run until a test pushes to the list `release:<job id>` in the result backend.
"""

import os
import signal
from typing import Any

from celery import Celery

from zot_artifact_client.contract import CANCEL_KEY, PROGRESS_STATE, UPLOAD, VERIFY, UploadResult, VerifyResult, queues
from zot_artifact_client.errors import JobCancelled, JobFailed

app = Celery("contract-worker", broker=os.environ["TEST_BROKER"], backend=os.environ["TEST_RESULTS"])
app.conf.update(
    task_queues=queues.queues(),
    task_create_missing_queues=False,
    task_serializer="json",
    accept_content=["json"],
    task_track_started=True,
    worker_prefetch_multiplier=1,
    task_acks_late=True,
    task_reject_on_worker_lost=False,
    broker_connection_retry_on_startup=True,
)


def release_key(job_id: str) -> str:
    """Return the list that a held job listens to."""
    return f"release:{job_id}"


@app.task(name=UPLOAD.name, bind=True)
def upload(self: Any, **payload: Any) -> dict[str, object]:
    """Do what the key says, then report the version."""
    request = UPLOAD.request.read(payload)
    behaviour = request.key.partition("/")[0]
    if behaviour == "hold":
        self.update_state(state=PROGRESS_STATE, meta={"bytes_done": 3, "bytes_total": 7, "step": "reading"})
        hold(self.request.id)
    if behaviour == "dead":
        raise JobFailed("store dr did not answer", "Unavailable", "dead", 5)
    if behaviour == "foreign":
        raise KeyError("an unexpected error\nsecond line")
    if behaviour == "lost":
        os.kill(os.getpid(), signal.SIGKILL)
    sha256 = request.sha256 or "0" * 64
    version = {"version": 1, "size": 7, "sha256": sha256}
    return UploadResult(bucket=request.bucket, key=request.key, **version, unchanged=False, copies=()).model_dump(
        mode="json"
    ) | {"a_field_of_tomorrow": True}


def hold(job_id: str) -> None:
    """Return when the job is released; raise JobCancelled when it was cancelled meanwhile."""
    redis = app.backend.client
    while redis.blpop([release_key(job_id)], timeout=1) is None:
        if redis.get(CANCEL_KEY.format(job=job_id)):
            raise JobCancelled(f"job {job_id} was cancelled")


@app.task(name=VERIFY.name)
def verify(**payload: Any) -> dict[str, object]:
    """Report the copies that were asked for as verified."""
    request = VERIFY.request.read(payload)
    copies = tuple({"store": store, "verdict": "verified"} for store in request.stores or ("primary",))
    version = {"version": 1, "size": 7, "sha256": "0" * 64}
    return VerifyResult.read({"bucket": request.bucket, "key": request.key, **version, "copies": copies}).model_dump(
        mode="json"
    )
