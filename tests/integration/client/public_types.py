"""What a type checker must find the public surface of the client to be; test_examples.py has mypy check it."""

from typing import Any, assert_type

from zot_artifact_client import (
    Artifacts,
    AsyncArtifacts,
    AsyncJob,
    AsyncJobs,
    BatchResult,
    Job,
    Jobs,
    JobStatus,
    ListResult,
    ShowResult,
    UploadResult,
    VerifyResult,
)
from zot_artifact_client.contract import VERIFY, VerifyRequest


def synchronous(client: Artifacts) -> None:
    assert_type(client.upload("/in", "b", "k"), Job[UploadResult])
    assert_type(client.upload("/in", "b", "k").wait(1), UploadResult)
    assert_type(client.upload("/in", "b", "k").result, UploadResult | None)
    assert_type(client.upload_dir("/in", "b"), Job[BatchResult])
    assert_type(client.verify_job("id"), Job[VerifyResult])
    assert_type(client.job("id", VERIFY), Job[VerifyResult])
    assert_type(client.job("id"), Job[Any])
    assert_type(client.submit(VERIFY, VerifyRequest(bucket="b", key="k")), Job[VerifyResult])
    assert_type(client.submit_many([]), Jobs)
    assert_type(client.show("b", "k"), ShowResult)
    assert_type(client.list("b"), ListResult)
    assert_type(client.status("id"), JobStatus)


async def asynchronous(client: AsyncArtifacts) -> None:
    job = await client.upload("/in", "b", "k")
    assert_type(job, AsyncJob[UploadResult])
    assert_type(await job.wait(1), UploadResult)
    assert_type(await job.result(), UploadResult | None)
    assert_type(await (await client.upload_dir("/in", "b")).wait(), BatchResult)
    assert_type(client.verify_job("id"), AsyncJob[VerifyResult])
    assert_type(await client.submit(VERIFY, VerifyRequest(bucket="b", key="k")), AsyncJob[VerifyResult])
    assert_type(await client.submit_many([]), AsyncJobs)
    assert_type(await client.show("b", "k"), ShowResult)
    assert_type(await client.list("b"), ListResult)
    assert_type(await client.status("id"), JobStatus)
