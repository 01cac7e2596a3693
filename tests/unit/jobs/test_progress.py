"""No job waits for its progress to be published."""

import time

from celery import Celery

from tests.servers.process import free_port
from worker.jobs.progress import CeleryReporter
from zot_artifact_client.contract import Progress


def test_progress_is_not_kept_back_by_a_result_backend_that_is_away() -> None:
    """A child waits for the backend with a job's end, not with its progress: the transfer goes on."""
    app = Celery("test", backend=f"redis://127.0.0.1:{free_port()}/0", set_as_current=False)
    app.backend.always_retry = True

    @app.task
    def task() -> None:
        """Represent any task."""

    task.push_request(id="job-1")
    begun = time.monotonic()
    CeleryReporter(task).report(Progress())
    assert time.monotonic() - begun < 60
    app.close()
