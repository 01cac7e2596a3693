"""Authorize a request: who calls, which artifact its path names, and whether the caller may do it."""

from collections.abc import Sequence
from http import HTTPStatus
from urllib.parse import unquote_to_bytes

from fastapi import Request
from starlette.convertors import Convertor, register_url_convertor

from worker.gateway.access import ALL, Caller, TokenVerb
from worker.gateway.problems import Problem
from worker.gateway.services import Services
from worker.storage.errors import InvalidKey
from worker.storage.keys import check_bucket, check_existing_key


class _KeyConvertor(Convertor[str]):
    """Matches the rest of a path: the framework's own `path` stops at a line end, which a key may hold."""

    regex = r"[\s\S]*"

    def convert(self, value: str) -> str:
        """Return the text as it is."""
        return value

    def to_string(self, value: str) -> str:
        """Return the text as it is."""
        return value


register_url_convertor("key", _KeyConvertor())


def services_of(request: Request) -> Services:
    """Return the services of the application."""
    services: Services = request.app.state.services
    return services


def caller_of_request(request: Request) -> Caller:
    """Return the caller that the guard has admitted."""
    caller: Caller = request.state.caller
    return caller


def artifact_path(request: Request, below: str) -> tuple[str, str]:
    """Return bucket and key of a path such as `/v1/objects/BUCKET/KEY`, as they are in the request, byte for byte.

    The framework's own parameters are decoded with replacement characters, and two keys would be one.

    Raises:
        InvalidKey: they are no bucket and key.
    """
    raw: bytes = request.scope["raw_path"]
    rest = raw.removeprefix(below.encode())
    try:
        bucket, _, key = unquote_to_bytes(rest).decode().partition("/")
    except UnicodeDecodeError:
        raise InvalidKey("the path is no UTF-8: write the key in UTF-8, with percent-encoding") from None
    return check_bucket(bucket), check_existing_key(bucket, key)


def check_may(caller: Caller, verb: TokenVerb, bucket: str, start: str) -> None:
    """Return if the token allows a verb on a key, or on all keys with a prefix. What exists makes no difference.

    Raises:
        Problem: it does not.
    """
    if not caller.may(verb):
        raise Problem(HTTPStatus.FORBIDDEN, "NotAllowed", f"token {caller.name} does not allow {verb.value}")
    if not caller.reaches(bucket, start):
        there = ", ".join(caller.buckets)
        raise Problem(
            HTTPStatus.FORBIDDEN, "NotAllowed", f"token {caller.name} is for {there}, and not for {bucket}/{start}"
        )


def check_receivers(services: Services, caller: Caller, names: Sequence[str], bucket: str, start: str) -> None:
    """Return if the end of a job on a key, or on all keys with a prefix, may go to these webhooks.

    A receiver whose settings have no `buckets` is for services that reach the broker and for tokens for all buckets.

    Raises:
        Problem: it may not; it tells nothing of the webhooks that there are.
    """
    known = services.settings.webhooks
    for name in names:
        receiver = known.get(name)
        named = receiver is not None and (receiver.buckets is not None or ALL in caller.buckets)
        if receiver is None or not named or not receiver.takes(bucket, start):
            detail = f"notify: there is no webhook {name} for {bucket}/{start}"
            raise Problem(HTTPStatus.FORBIDDEN, "NotAllowed", detail)


def check_owner(caller: Caller, verb: TokenVerb, bucket: str, of: str | None) -> None:
    """Return if the token allows an upload of a companion of this artifact, which is deleted and held with it.

    Raises:
        Problem: it may not.
    """
    if of is not None:
        check_may(caller, verb, bucket, check_existing_key(bucket, of))


def not_found(bucket: str, key: str) -> Problem:
    """Return the answer for an artifact that does not exist, or that the token is not for: both look the same."""
    detail = f"{bucket}/{key}: there is no such artifact, or the token is not for it"
    return Problem(HTTPStatus.NOT_FOUND, "NotFound", detail)
