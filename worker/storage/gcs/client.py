"""A connection to Cloud Storage: credentials, the library's client, and the session that moves the bytes."""

import logging
import os
import warnings
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, NamedTuple
from urllib.parse import quote

import google.auth
import google.auth.credentials
import requests
from google.api_core.exceptions import from_http_response
from google.auth.transport.requests import AuthorizedSession
from google.cloud import storage
from google.cloud.storage.retry import DEFAULT_RETRY
from requests.exceptions import InvalidJSONError

from worker.storage.cloud.error_mapping import REQUESTS_TRUST, check_environment, shown_url
from worker.storage.cloud.proxies import proxies_for
from worker.storage.cloud.response_body import limit_answer
from worker.storage.config import GcsConfig
from worker.storage.errors import AccessDenied
from worker.storage.transfer.send_in_slices import mount_sliced_body

GOOGLE = "https://storage.googleapis.com"
EMULATOR_VARIABLE = "STORAGE_EMULATOR_HOST"
SCOPES = ("https://www.googleapis.com/auth/devstorage.full_control",)
TIMEOUT = (5.0, 60.0)
"""Seconds to connect, and to wait for the next byte of an answer."""
COMMIT_TIMEOUT = (5.0, 300.0)
"""The same for composing and rewriting, which are answered when they are done."""
RETRY_FOR = 20.0
"""Seconds: how long the library repeats one request; the job's own retries are Celery's."""

log = logging.getLogger(__name__)


class ObjectName(NamedTuple):
    """The name of a real object: its bucket, and its whole name in it."""

    bucket: str
    name: str


@dataclass(frozen=True, slots=True)
class Connection:
    """The clients for requests of one process; its threads may share them."""

    client: Any
    session: requests.Session
    endpoint: str
    kms_key: str | None
    storage_class: str | None

    def blob(self, name: ObjectName, generation: int | None = None) -> Any:
        """Return the library's handle of an object, without a request."""
        return self.client.bucket(name.bucket).blob(name.name, generation=generation, kms_key_name=self.kms_key)

    def pinned(self, pin: int) -> dict[str, str]:
        """Return the parameters of every write: the generation `pin` to replace, 0 for none, and the key."""
        return {"ifGenerationMatch": str(pin)} | ({"kmsKeyName": self.kms_key} if self.kms_key else {})

    def upload_url(self, bucket: str) -> str:
        return f"{self.endpoint}/upload/storage/v1/b/{quote(bucket, safe='')}/o"

    def object_url(self, name: ObjectName) -> str:
        return f"{self.endpoint}/storage/v1/b/{quote(name.bucket, safe='')}/o/{quote(name.name, safe='')}"

    def download_url(self, name: ObjectName) -> str:
        return f"{self.endpoint}/download/storage/v1/b/{quote(name.bucket, safe='')}/o/{quote(name.name, safe='')}"

    def close(self) -> None:
        self.session.close()


def retry() -> Any:
    """Return the retry policy of the library, for idempotent requests only."""
    return DEFAULT_RETRY.with_timeout(RETRY_FOR).with_delay(initial=0.5, maximum=8.0, multiplier=2.0)


def check_answer(reply: requests.Response) -> None:
    """Raise what the library would raise, for a request that was made without it."""
    if not reply.ok:
        raise from_http_response(reply)


def _empty_unreadable_error(reply: requests.Response, **_options: object) -> None:
    """Empty the body of an error that the library cannot read: the status then says whether another try may help.

    A gateway may answer 503 with `{"error": "busy"}`, for which the library raises an AttributeError.
    """
    if reply.status_code < HTTPStatus.MULTIPLE_CHOICES:
        return
    try:
        _ = from_http_response(reply).errors
    except requests.RequestException:
        raise  # the answer broke off
    except Exception:  # noqa: BLE001  whatever the library raises
        reply._content = b""  # noqa: SLF001  the library offers no other place


def endpoint_of(config: GcsConfig) -> str:
    """Return the endpoint as messages may show it."""
    return shown_url(config.endpoint or GOOGLE).rstrip("/")


def connect(name: str, config: GcsConfig) -> Connection:
    """Make the client with the configured credentials, or with the application's default ones.

    Raises:
        AccessDenied: the credentials file cannot be read.
        Unavailable: the certificates, or the proxy, that the environment names cannot be used.
        google.auth.exceptions.GoogleAuthError: there are no usable credentials.
    """
    endpoint = (config.endpoint or GOOGLE).rstrip("/")
    authorities = check_environment(name, endpoint, REQUESTS_TRUST)
    _warn_of_emulator(name, endpoint)
    credentials, project = _credentials(name, config)
    session = AuthorizedSession(credentials)
    mount_sliced_body(session)
    session.max_redirects = 0  # an object's bytes would go to, and come from, whatever host an answer names
    session.hooks["response"] += [limit_answer, _empty_unreadable_error]
    _read_environment_once(session, endpoint, authorities)
    # Otherwise a thread of the library asks for each bucket, for tracing: outside of all limits, and with each request
    # again while the store is down.
    os.environ.setdefault("DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA", "true")
    client = storage.Client(
        project=config.project or project,
        credentials=credentials,
        client_options={"api_endpoint": endpoint},  # always set, so that no environment variable can change it
        _http=session,
    )
    return Connection(client, session, endpoint, config.kms_key, config.storage_class)


def _read_environment_once(session: requests.Session, endpoint: str, authorities: str | None) -> None:
    """Have a session trust these authorities, or the usual ones, and use the proxy that the environment names.

    A session reads the environment for each request, which took a third of the processor time of a request. It also
    sends the password that a netrc file has for the host, in place of the token.
    """
    session.proxies = proxies_for(endpoint)
    session.trust_env = False
    session.verify = authorities or True


def _warn_of_emulator(name: str, endpoint: str) -> None:
    elsewhere = os.environ.get(EMULATOR_VARIABLE, endpoint).rstrip("/")
    if elsewhere != endpoint:
        log.warning(
            "%s: %s is ignored: the store is at %s; set `endpoint` to use an emulator",
            name,
            EMULATOR_VARIABLE,
            endpoint,
        )


def _credentials(name: str, config: GcsConfig) -> tuple[google.auth.credentials.Credentials, str | None]:
    if config.anonymous:
        return google.auth.credentials.AnonymousCredentials(), None
    with warnings.catch_warnings():
        # The library warns about the origin of files and about a user's own credentials. Both are the operator's
        # choice.
        warnings.simplefilter("ignore")
        if config.credentials_file is None:
            return google.auth.default(scopes=SCOPES)
        try:
            return google.auth.load_credentials_from_file(  # type: ignore[no-any-return]
                str(config.credentials_file), scopes=SCOPES
            )
        except ValueError as error:
            raise AccessDenied(
                f"{name}: {config.credentials_file} holds no credentials; correct `credentials_file`"
            ) from error


def list_blobs(connection: Connection, real: str, fields: str, **wanted: Any) -> Any:
    """Return the library's iterator of a listing, with these fields of each answer.

    It raises InvalidJSONError for an answer that is no listing: the library takes every JSON object, also an empty one,
    for a listing without a row.
    """
    listing: Any = connection.client.list_blobs(real, fields=f"kind,{fields}", retry=retry(), timeout=TIMEOUT, **wanted)
    ask = listing._get_next_page_response  # noqa: SLF001  the library offers no other place

    def answered() -> Any:
        answer = ask()
        if not isinstance(answer, dict) or answer.get("kind") != "storage#objects":
            msg = "the answer is no listing"
            raise InvalidJSONError(msg)
        return answer

    listing._get_next_page_response = answered  # noqa: SLF001
    return listing
