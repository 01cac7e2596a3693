"""The ASGI application of the gateway, and its OpenAPI document."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from worker.catalogue import CatalogueError
from worker.gateway import artifacts, jobs, objects, uploads
from worker.gateway.problems import MEDIA_TYPE, answer_error, answer_invalid, answer_problem
from worker.gateway.request_admission import Guard
from worker.gateway.services import Services
from worker.gateway.unique_names import UniqueNamesRoute
from worker.settings.model import NoBroker
from worker.storage.errors import StorageError
from zot_artifact_client.errors import ClientError

VERSION = "1"
_ABOUT = """\
Keep artifacts in object stores from any language. docs/gateway.md has examples.

Every request shows a token (`Authorization: Bearer TOKEN`), which is for buckets and verbs.
Long work is a job: POST it, then ask for its state or follow its events.
Errors are problem documents (RFC 9457)."""


def make_app(services: Services) -> ASGIApp:
    """Return the application; it closes the services when it ends."""

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        yield
        services.close()

    app = _routes(lifespan=life)
    app.state.services = services
    return Guard(app, services)


def openapi() -> dict[str, Any]:
    """Return the OpenAPI document."""
    document = _routes().openapi()
    document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    document["security"] = [{"token": []}]
    for operation in (each for path in document["paths"].values() for each in path.values()):
        for status, answer in operation["responses"].items():
            if status.endswith("XX"):  # FastAPI gives every model the media type of the other answers
                answer["content"] = {MEDIA_TYPE: answer["content"].pop("application/json")}
    return document


def _routes(**options: Any) -> FastAPI:
    app = FastAPI(
        title="Zot artifact gateway",
        version=VERSION,
        description=_ABOUT,
        openapi_url=None,  # nothing is open without a token, and docs/openapi.json has it
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        **options,
    )
    app.router.route_class = UniqueNamesRoute
    app.add_exception_handler(HTTPException, answer_problem)
    app.add_exception_handler(RequestValidationError, answer_invalid)
    for kind in (StorageError, CatalogueError, ClientError, NoBroker, Exception):
        app.add_exception_handler(kind, answer_error)
    jobs.add_sending(app)
    for part in (jobs, artifacts, objects, uploads):
        app.include_router(part.router)
    return app
