"""Send a job from within the worker."""

from typing import Any, TypeVar

from celery import Celery, current_app

from zot_artifact_client.contract import Message, Queue, TaskSpec

RequestT = TypeVar("RequestT", bound=Message)


def send_child(spec: TaskSpec[RequestT, Any], request: RequestT, *, id_: str, parent: str, queue: Queue) -> None:
    """Enqueue a job as the child of a running one. Sending it again with the same id is harmless."""
    app: Celery = current_app
    app.send_task(spec.name, kwargs=request.payload(), task_id=id_, parent_id=parent, queue=queue)
