"""A Celery application of another team, whose tasks store releases through the artifact worker.

It has a broker of its own, and may as well share that of the artifact worker. Its settings do not reach the client.
"""

import os

from celery import Celery, Task

from zot_artifact_client import ArtifactClient, BrokerUnavailable, WaitTimeout

app = Celery("service", broker=os.environ["SERVICE_BROKER"], backend=os.environ["SERVICE_BROKER"])
app.conf.task_default_queue = "service"  # the artifact worker takes nothing from this queue
artifacts = ArtifactClient(os.environ["ZOT_BROKER"], service="releases")  # each child of the pool connects by itself


@app.task(bind=True, autoretry_for=(BrokerUnavailable, WaitTimeout), retry_backoff=True, max_retries=8)
def publish(self: Task, source: str, name: str, build: str) -> dict[str, object]:
    """Upload a release, wait for it, and have its copies verified; a retry finds the same jobs."""
    del self
    uploaded = artifacts.upload(source, "releases", name, idempotency_key=f"upload-{build}").wait(timeout=600)
    verified = artifacts.verify("releases", name, idempotency_key=f"verify-{build}").wait(timeout=600)
    return {"version": uploaded.version, "sha256": uploaded.sha256, "good": verified.good}
