"""The settings of alarms: where they go, and which findings are told."""

import re
from base64 import b64decode
from datetime import timedelta
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator

from worker.settings.section_models import Section
from worker.storage.durations_and_sizes import Duration, Interval
from worker.storage.local_paths import LocalPath

_SHORTEST_SECRET = 16
"""Bytes of a key that cannot be guessed."""
_ADDRESS = re.compile(r"[!-~]+@[A-Za-z0-9.-]+")
_SERVER = re.compile(r"(?P<host>[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(?::(?P<port>[0-9]{1,5}))?")
_PORTS = {"starttls": 587, "tls": 465, "none": 25}

Told = Literal[
    "lost", "log_changed", "store_untrusted", "listing_suspect", "corrupt", "missing", "size_mismatch", "suspect",
    "unreadable", "under_replicated", "overdue", "too_slow", "orphan", "store_not_configured", "canary_missed",
    "alarm_undelivered", "backup", "conflict", "metadata", "delete_waiting", "webhook_undelivered",
]  # fmt: skip
"""The kinds of findings that can be alarms."""


class WebhookSettings(Section):
    """An HTTP endpoint that gets each digest, signed as Standard Webhooks describes."""

    url: SecretStr
    """http:// or https://; it is never shown, because many services put a token into it. No redirect is followed."""
    secret: SecretStr
    """The key of the signature, as text of at least 16 characters or `whsec_` with base64."""
    timeout: Duration = timedelta(seconds=10)

    @field_validator("url")
    @classmethod
    def _is_an_address(cls, url: SecretStr) -> SecretStr:
        text = url.get_secret_value()
        try:
            parts = urlsplit(text)
            usable = parts.scheme in {"http", "https"} and parts.hostname and (parts.port is None or parts.port)
        except ValueError:
            usable = False
        if not usable or not text.isascii() or not text.isprintable() or "\\" in text or " " in text:
            msg = "an address such as https://alarms.example/zot is expected"
            raise ValueError(msg)
        if "@" in parts.netloc:
            msg = "no user and no password can be part of the address: the receiver checks the signature"
            raise ValueError(msg)
        return url

    @field_validator("secret")
    @classmethod
    def _is_long_enough(cls, secret: SecretStr) -> SecretStr:
        try:
            long_enough = len(key_of(secret)) >= _SHORTEST_SECRET
        except ValueError:
            msg = "what follows whsec_ is no base64"
            raise ValueError(msg) from None
        if not long_enough:
            msg = f"it has fewer than {_SHORTEST_SECRET} bytes: `openssl rand -base64 32` makes one"
            raise ValueError(msg)
        return secret

    @property
    def host(self) -> str:
        """Return the host that messages may name."""
        return urlsplit(self.url.get_secret_value()).hostname or ""


class EmailSettings(Section):
    """An SMTP server that sends each digest to some addresses."""

    server: str
    """`HOST` or `HOST:PORT`; the port is 587 by default, 465 with `tls` and 25 with `none`."""
    security: Literal["starttls", "tls", "none"] = "starttls"
    """The certificate of the server is verified; `none` is for a relay on the same machine."""
    ca_file: LocalPath | None = None
    """The certificates that are trusted, in place of the system's."""
    username: str | None = None
    password: SecretStr | None = None
    sender: str
    recipients: Annotated[tuple[str, ...], Field(min_length=1, max_length=100)]
    timeout: Duration = timedelta(seconds=30)

    @field_validator("server")
    @classmethod
    def _is_a_server(cls, server: str) -> str:
        if not _SERVER.fullmatch(server):
            msg = "a server such as smtp.example:587 is expected"
            raise ValueError(msg)
        return server

    @field_validator("sender", "recipients")
    @classmethod
    def _are_addresses(cls, given: str | tuple[str, ...]) -> str | tuple[str, ...]:
        for address in (given,) if isinstance(given, str) else given:
            if not _ADDRESS.fullmatch(address):
                msg = "an address such as ops@builds.example is expected"
                raise ValueError(msg)
        return given

    @field_validator("username", "password")
    @classmethod
    def _can_be_sent(cls, given: str | SecretStr | None) -> str | SecretStr | None:
        text = given.get_secret_value() if isinstance(given, SecretStr) else given
        if text is not None and not text.isascii():
            msg = "only letters of ASCII can be sent to a mail server"
            raise ValueError(msg)
        return given

    @model_validator(mode="after")
    def _password_is_encrypted(self) -> "EmailSettings":
        if (self.username is None) != (self.password is None):
            msg = "username and password go together"
            raise ValueError(msg)
        if self.password is not None and self.security == "none":
            msg = "a password needs the security starttls or tls: else it is sent in the clear"
            raise ValueError(msg)
        return self

    @property
    def address(self) -> tuple[str, int]:
        """Return host and port of the server."""
        found = _SERVER.fullmatch(self.server)
        if found is None:  # the validator has checked it
            raise ValueError(self.server)
        return found["host"].strip("[]"), int(found["port"] or _PORTS[self.security])


class AlarmSettings(Section):
    """Where changes of findings are sent. All changes since the last digest are one message, the next digest."""

    enabled: bool = True
    every: Interval = timedelta(minutes=1)
    """How often findings that were opened, escalated or resolved are told."""
    escalate: Duration = timedelta(days=1)
    """A finding that is open and not acknowledged for so long is told a second time."""
    quiet: tuple[Told, ...] = ("suspect",)
    """Kinds of findings that cause no alarm. A second read resolves `suspect` or makes it another kind."""
    log: bool = True
    """Write each digest to the log of the worker."""
    webhook: WebhookSettings | None = None
    email: EmailSettings | None = None

    @property
    def channels(self) -> tuple[str, ...]:
        """Return the names of the channels that are configured."""
        there = {"log": self.log, "webhook": self.webhook, "email": self.email}
        return tuple(name for name, on in there.items() if on) if self.enabled else ()


class JobReceiverSettings(WebhookSettings):
    """An HTTP endpoint that gets the ends of jobs, signed as alarms are."""

    buckets: tuple[Annotated[str, Field(min_length=1, max_length=1100)], ...] | None = None
    """The buckets, as `BUCKET` or `BUCKET/PREFIX`, whose jobs may name it; `*` are all.

    By default all, except for a token of the gateway that is not for all buckets itself: it cannot name the receiver.
    """

    def takes(self, bucket: str | None, start: str) -> bool:
        """Return whether a job on this key, or on all keys that begin so, may name it; without a bucket on any key."""
        if self.buckets is None or "*" in self.buckets:
            return True
        places = (each.partition("/") for each in self.buckets)
        return any(of == bucket and start.startswith(prefix) for of, _, prefix in places)


class JobWebhookSettings(Section):
    """How often the ends of jobs are delivered to the webhooks that requests name."""

    every: Interval = timedelta(seconds=5)
    give_up: Annotated[Duration, Field(ge=timedelta(minutes=1))] = timedelta(days=3)
    """How long after the end of a job its webhook is tried again."""


def key_of(secret: SecretStr) -> bytes:
    """Return the key of a signature as bytes."""
    text = secret.get_secret_value()
    return b64decode(text[6:], validate=True) if text.startswith("whsec_") else text.encode()
