"""Refuse a JSON body that names a field twice; the framework would use the last value in silence."""

import json
from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from worker.gateway.problems import Problem
from zot_artifact_client.input_rules import NamedTwice, unique_names


class _Request(Request):
    async def json(self) -> Any:
        try:
            return json.loads(await self.body(), object_pairs_hook=unique_names)
        except NamedTwice as error:
            raise Problem(HTTPStatus.BAD_REQUEST, "InvalidRequest", f"body: {error}") from None


class UniqueNamesRoute(APIRoute):
    """A route whose JSON body names no field twice."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler, which reads the body with that rule."""
        handler = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handler(_Request(request.scope, request.receive))

        return strict
