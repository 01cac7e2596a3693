"""Send a message to an HTTP endpoint, signed as Standard Webhooks 1.0 describes."""

import hashlib
import hmac
import json
import os
from base64 import b64encode
from collections.abc import Mapping
from datetime import datetime
from importlib.metadata import version
from typing import Any

from worker.alarms.attempts import AlarmUndelivered, AttemptTime
from worker.settings.alarms import WebhookSettings, key_of
from worker.storage.cloud.proxies import proxies_for, proxy_for
from zot_artifact_client.tls_faults import tls_fault

_TRUST = "REQUESTS_CA_BUNDLE"
"""The environment variable that names the certificates of authorities for `requests`."""
_SUCCESS = range(200, 300)
_CONNECT_AND_ANSWER = 2
"""Timeouts that one attempt takes at most."""


def signed(payload: Mapping[str, Any], key: bytes, *, at: datetime) -> tuple[bytes, dict[str, str]]:
    """Return body and headers of a message, such as a digest.

    `webhook-signature` is `v1,` and the HMAC-SHA256 of `ID.SECONDS.BODY` in base64. The id is the same at each attempt,
    so that a receiver can ignore a digest that it has; the time is that of the attempt, so that it can refuse an old
    message that another program sends again.
    """
    body = json.dumps(payload, separators=(",", ":")).encode()
    seconds = str(int(at.timestamp()))
    content = b".".join((str(payload["id"]).encode(), seconds.encode(), body))
    signature = b64encode(hmac.new(key, content, hashlib.sha256).digest()).decode()
    return body, {
        "content-type": "application/json",
        "user-agent": f"zot-artifact-worker/{version('zot-artifact-worker')}",
        "webhook-id": str(payload["id"]),
        "webhook-timestamp": seconds,
        "webhook-signature": f"v1,{signature}",
    }


def post(
    payload: Mapping[str, Any], settings: WebhookSettings, *, at: datetime, setting: str = "alarms.webhook"
) -> None:
    """Send a digest and return when the endpoint has accepted it. A redirect is not followed.

    `setting`: the name of the settings, for messages.

    Raises:
        AlarmUndelivered: the endpoint did not accept it; the message names its host alone.
    """
    import requests

    from worker.alarms.http_final_response_adapter import FinalResponseAdapter  # it imports requests

    url, seconds = settings.url.get_secret_value(), settings.timeout.total_seconds()
    body, headers = signed(payload, key_of(settings.secret), at=at)
    try:
        proxy_for(url)
    except ValueError as error:
        raise AlarmUndelivered(f"webhook {settings.host}: {error}") from None
    time = AttemptTime(seconds * _CONNECT_AND_ANSWER)
    try:
        with time, requests.Session() as session:
            for scheme in ("http://", "https://"):
                session.mount(scheme, FinalResponseAdapter(time.watch))
            session.trust_env = False  # a netrc file could add a password to the request
            session.verify = _authorities() or True  # without that, requests does not ask the environment for them
            answer = session.post(
                url, data=body, headers=headers, allow_redirects=False, stream=True,
                timeout=seconds, proxies=proxies_for(url),
            )  # fmt: skip
            status = answer.status_code
            answer.close()
            if time.is_over:  # what it has sent until then looks like a whole answer
                raise requests.Timeout
    except (requests.RequestException, ValueError, OSError) as error:  # their messages contain the address
        if time.is_over:
            late = f"the answer took longer than {setting}.timeout allows"
            raise AlarmUndelivered(f"webhook {settings.host}: {late}") from None
        authorities = _authorities() if url.lower().startswith("https:") else None
        raise AlarmUndelivered(f"webhook {settings.host}: {_reason(error, setting, authorities)}") from None
    if status not in _SUCCESS:
        raise AlarmUndelivered(f"webhook {settings.host}: it answered with status {status}")


def _authorities() -> str | None:
    """Return the file or directory of certificates of authorities that the environment names."""
    return os.environ.get(_TRUST) or os.environ.get("CURL_CA_BUNDLE")


def _reason(error: Exception, setting: str, authorities: str | None) -> str:
    import requests

    if fault := tls_fault(error, trust=_TRUST, path=authorities):
        return fault
    reasons = {
        requests.exceptions.ProxyError: "the proxy refused the connection",
        requests.exceptions.ConnectTimeout: f"no connection within {setting}.timeout",
        requests.exceptions.ReadTimeout: f"no answer within {setting}.timeout",
        requests.exceptions.ConnectionError: "it refused or closed the connection, or its name is not known",
    }
    return next((text for kind, text in reasons.items() if isinstance(error, kind)), type(error).__name__)
