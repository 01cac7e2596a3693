"""Read the small objects of a store that speaks S3 with plain requests, where its configuration allows it."""

from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING

from botocore.parsers import ResponseParserError
from requests.structures import CaseInsensitiveDict

from worker.storage.cloud.metadata import SHA256
from worker.storage.cloud.plain_requests import Answer
from worker.storage.cloud.small_reads import PlainReads, whole_object
from worker.storage.config import S3Config
from worker.storage.s3.errors import SDK_ERRORS
from worker.storage.s3.object_stat import version_of
from worker.storage.s3.requests_without_sdk import PARSER, locator, refusal_of

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import HeadObjectOutputTypeDef

DIGESTS = {"x-amz-checksum-mode": "ENABLED"}
"""Asks for the store's own digest in the answer to a HEAD."""
_DIGEST = f"x-amz-meta-{SHA256}"
_FINAL = {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND}
"""Statuses after which the SDK would not ask again either."""


def plain_reads(config: S3Config, client: "Callable[[], S3Client]") -> PlainReads:
    """Return the plain reads of a store."""
    return PlainReads(
        locator(config, client),
        lambda answer: whole_object(answer, _DIGEST, version_of(answer.headers.get("etag"))),
        SDK_ERRORS,
    )


def parse_head(answer: Answer, client: "S3Client") -> "HeadObjectOutputTypeDef | None":
    """Return the answer to a HEAD as the SDK returns it; None where the SDK has to ask.

    Raises:
        ClientError: there is no such object, or the store refuses to tell.
    """
    if answer.status in _FINAL:
        raise refusal_of(answer, "HeadObject")
    if answer.status != HTTPStatus.OK:
        return None
    shape = client.meta.service_model.operation_model("HeadObject").output_shape
    reply = {"status_code": answer.status, "headers": CaseInsensitiveDict(answer.headers), "body": b""}
    try:
        found: HeadObjectOutputTypeDef = PARSER.parse(reply, shape)
    except (ValueError, ResponseParserError):  # a header is not what its name says
        return None
    return found
