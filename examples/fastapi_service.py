"""A FastAPI service that stores releases: it enqueues, waits and reads without blocking its event loop."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse

from zot_artifact_client import (
    ArtifactNotFound,
    AsyncArtifactClient,
    AsyncArtifacts,
    BrokerUnavailable,
    IdempotencyMismatch,
    InvalidRequest,
    JobCancelled,
    JobFailed,
    JobState,
    WaitTimeout,
)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Keep one client for the life of the process; all requests share it."""
    async with AsyncArtifactClient(os.environ["ZOT_BROKER"], service="releases") as client:
        app.state.artifacts = client
        yield


app = FastAPI(title="Releases", lifespan=lifespan)


async def artifacts(request: Request) -> AsyncArtifacts:
    """Return the client; a test of the service overrides this with an AsyncInMemoryArtifactClient.

    It is a coroutine function, because FastAPI runs any other in a thread for each request.
    """
    client: AsyncArtifacts = request.app.state.artifacts
    return client


Client = Annotated[AsyncArtifacts, Depends(artifacts)]


@app.post("/releases/{name}", status_code=202)
async def publish(name: str, source: str, build: str, client: Client) -> dict[str, str]:
    """Enqueue the upload of a release; the same build twice is the same job."""
    job = await client.upload(source, "releases", name, idempotency_key=f"build-{build}")
    return {"job": job.id}


@app.get("/jobs/{job_id}")
async def job(job_id: str, client: Client) -> dict[str, Any]:
    """Return the state of a job, which any process may have sent."""
    status = await client.status(job_id)
    if status.state is JobState.UNKNOWN:
        raise HTTPException(404, f"nothing is known of a job {job_id}")
    progress = None if status.progress is None else status.progress.model_dump()
    return {"kind": status.kind, "state": status.state, "progress": progress, "error": str(status.error or "") or None}


@app.get("/releases/{name}")
async def release(name: str, client: Client) -> dict[str, Any]:
    """Return what is stored of a release."""
    shown = await client.show("releases", name)
    return {"sha256": shown.sha256, "size": shown.size, "copies": {copy.store: copy.state for copy in shown.copies}}


@app.post("/releases/{name}/check")
async def check(name: str, client: Client) -> dict[str, str]:
    """Have all bytes of all copies read now, and wait for the verdicts."""
    verification = await client.verify("releases", name)
    result = await verification.wait(timeout=300)
    return {copy.store: copy.verdict for copy in result.copies}


_STATUSES = {
    ArtifactNotFound: 404,
    JobFailed: 409,
    JobCancelled: 409,
    IdempotencyMismatch: 409,
    InvalidRequest: 422,
    BrokerUnavailable: 503,
    WaitTimeout: 504,
}


async def _answer(_: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"error": str(error)}, _STATUSES[type(error)])


for _error in _STATUSES:
    app.add_exception_handler(_error, _answer)
