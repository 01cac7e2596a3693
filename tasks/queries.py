"""Answer queries from the catalogue: one artifact, a page of a bucket, one job."""

from worker.artifacts.queries import list_artifacts, show, status
from worker.jobs.query_task import query_task
from zot_artifact_client.contract import QUERY_LIST, QUERY_SHOW, QUERY_STATUS

show_task = query_task(QUERY_SHOW)(show)
list_task = query_task(QUERY_LIST)(list_artifacts)
status_task = query_task(QUERY_STATUS)(status)
