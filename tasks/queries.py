"""Answer queries from the catalogue: one artifact, a page of a bucket, one job.

A query has no row in the ledger, no retry and a short-lived answer. The message filter makes sure that its message has
an id that no job can have.
"""

import logging
from collections.abc import Callable
from typing import Any, TypeVar

from celery import Task, shared_task
from celery.exceptions import SoftTimeLimitExceeded
from pydantic import ValidationError

from worker.artifacts.queries import list_artifacts, show, status
from worker.catalogue import CatalogueError
from worker.context import Context, current
from worker.intake.message_rules import problems_of
from worker.storage.errors import StorageError
from zot_artifact_client.contract import QUERY_LIST, QUERY_SHOW, QUERY_STATUS, JobState, Message, TaskSpec
from zot_artifact_client.errors import JobFailed
from zot_artifact_client.text_escaping import bounded

logger = logging.getLogger(__name__)

RequestT = TypeVar("RequestT", bound=Message)
ResultT = TypeVar("ResultT", bound=Message)

_LIMIT = 20
"""Seconds that an answer may take; its client waits for about ten."""
_MESSAGE = 2000


def query_task(
    spec: TaskSpec[RequestT, ResultT],
) -> Callable[[Callable[[RequestT, Context], ResultT]], Task]:
    """Register a plain function as the task that answers the queries of `spec`.

    An error of the catalogue or of a store, such as NotFound, is the answer: JobFailed with its name and message.
    """

    def register(answer: Callable[[RequestT, Context], ResultT]) -> Task:
        def run(*args: object, **kwargs: object) -> dict[str, Any]:
            try:
                if args:
                    raise _failed("InvalidMessage", "arguments are named", JobState.REFUSED)
                return answer(spec.request.model_validate(kwargs), current()).model_dump(mode="json")
            except ValidationError as error:
                raise _failed("InvalidMessage", problems_of(error), JobState.REFUSED) from None
            except (CatalogueError, StorageError) as error:
                raise _failed(type(error).__name__, bounded(error, _MESSAGE)) from None
            except SoftTimeLimitExceeded:
                raise _failed("TimeLimit", f"the answer took longer than {_LIMIT} s") from None
            except JobFailed:
                raise
            except Exception as error:
                logger.exception("a %s query failed on a bug of the worker", spec.kind)
                raise _failed(type(error).__name__, "a bug of the worker; its log has the traceback") from None

        return shared_task(
            name=spec.name,
            throws=(JobFailed,),
            acks_late=False,  # the client of a lost query asks again; Celery must not
            max_retries=0,
            soft_time_limit=_LIMIT,
            time_limit=2 * _LIMIT,
            resultrepr_maxsize=100,
        )(run)

    return register


def _failed(type_: str, message: str, state: JobState = JobState.FAILED) -> JobFailed:
    return JobFailed(message, type_, state.value, 1)


show_task = query_task(QUERY_SHOW)(show)
list_task = query_task(QUERY_LIST)(list_artifacts)
status_task = query_task(QUERY_STATUS)(status)
