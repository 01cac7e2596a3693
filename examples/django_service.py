"""A Django service that stores releases: two views, one client for each process.

The client is made in the module, before the server forks: each process makes connections of its own at its first job.
In a project of several files the client belongs into a module beside `settings.py`, and the views into `views.py`.
"""

import os
from collections.abc import Callable
from http import HTTPStatus

from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path
from django.views.decorators.http import require_GET, require_POST

from zot_artifact_client import (
    ArtifactClient,
    ArtifactNotFound,
    BrokerUnavailable,
    IdempotencyMismatch,
    InvalidRequest,
    JobNotDone,
    WaitTimeout,
)

artifacts = ArtifactClient(os.environ["ZOT_BROKER"], service="releases")

_STATUSES = {
    ArtifactNotFound: HTTPStatus.NOT_FOUND,
    BrokerUnavailable: HTTPStatus.SERVICE_UNAVAILABLE,
    IdempotencyMismatch: HTTPStatus.CONFLICT,
    InvalidRequest: HTTPStatus.UNPROCESSABLE_ENTITY,
    JobNotDone: HTTPStatus.CONFLICT,
    WaitTimeout: HTTPStatus.GATEWAY_TIMEOUT,
}


class ArtifactErrors:
    """Answer an error of the client with its HTTP status, in whichever view it is raised."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        """Return the answer of the view."""
        return self._get_response(request)

    def process_exception(self, _: HttpRequest, error: Exception) -> HttpResponse | None:
        """Return the answer for an error of the client; None for any other error."""
        status = next((status for kind, status in _STATUSES.items() if isinstance(error, kind)), None)
        return None if status is None else JsonResponse({"error": str(error)}, status=status)


@require_POST
def publish(request: HttpRequest, name: str) -> HttpResponse:
    """Upload a file of the worker's machine, wait for the end, and return the version; the same build is one job."""
    if not {"source", "build"} <= request.GET.keys():
        raise InvalidRequest("source and build are needed")
    key = f"build-{request.GET['build']}"
    result = artifacts.upload(str(request.GET["source"]), "releases", name, idempotency_key=key).wait(timeout=300)
    return JsonResponse({"version": result.version, "sha256": result.sha256})


@require_GET
def show(_: HttpRequest, name: str) -> HttpResponse:
    """Return the version of an artifact, and where its copies are."""
    shown = artifacts.show("releases", name)
    return JsonResponse({"version": shown.version, "copies": {copy.store: copy.state for copy in shown.copies}})


urlpatterns = [path("publish/<path:name>", publish), path("releases/<path:name>", show)]

settings.configure(
    ALLOWED_HOSTS=["127.0.0.1", "localhost"],
    MIDDLEWARE=[f"{__name__}.ArtifactErrors"],
    ROOT_URLCONF=__name__,
    SECRET_KEY=os.environ["DJANGO_SECRET_KEY"],
)
app = get_wsgi_application()
