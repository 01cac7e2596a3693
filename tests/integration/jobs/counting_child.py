"""Run many jobs in one process, as a child of the pool does, and print what they leave.

Two numbers of objects, before and after the jobs, and how many objects of one round only the garbage collector frees.

`python -m tests.integration.jobs.counting_child ROUNDS`, with the settings of a worker in the environment.
"""

import gc
import logging
import os
import sys
from pathlib import Path
from uuid import uuid4

from celery.app.trace import build_tracer

from worker.app import app
from zot_artifact_client.contract import DELETE, UPLOAD, VERIFY

WARM_UP = 20
ROUNDS_WITHOUT_GC = 10


def run(task: str, **request: object) -> None:
    """Handle one message, with all that Celery does around a task."""
    id_ = str(uuid4())
    headers = {"id": id_, "task": task, "hostname": "child", "delivery_info": {"routing_key": "transfer"}}
    TRACERS[task](id_, (), request, headers)


def one_round(number: int, source: Path) -> None:
    """Run an upload, a verify and a delete that succeed, two jobs that fail for good, and one that is to be retried."""
    at = {"bucket": "releases", "key": f"{number}"}
    run(UPLOAD.name, source=str(source), **at)
    run(VERIFY.name, **at)
    run(DELETE.name, allow_last=True, **at)
    run(VERIFY.name, bucket="releases", key=f"absent-{number}")
    run(UPLOAD.name, bucket="releases", key=f"failed-{number}", source=f"{source}-absent")
    run(UPLOAD.name, bucket="releases", key=f"retried-{number}", source=f"{os.environ['ABSENT_HOST']}/app.tgz")


def objects() -> int:
    gc.collect()
    return len(gc.get_objects())


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    app.loader.import_default_modules()
    app.finalize()
    TRACERS = {spec.name: build_tracer(spec.name, app.tasks[spec.name], app=app) for spec in (UPLOAD, VERIFY, DELETE)}
    given, rounds = Path(os.environ["SOURCE"]), int(sys.argv[1])
    for each in (*range(WARM_UP), 0):  # a further version after a delete too, so that its statements are compiled
        one_round(each, given)
    before = objects()
    for each in range(WARM_UP, WARM_UP + rounds):
        one_round(each, given)
    after = objects()
    gc.disable()
    for each in range(ROUNDS_WITHOUT_GC):
        one_round(each, given)
    print(before, after, gc.collect() // ROUNDS_WITHOUT_GC)
    app.close()
