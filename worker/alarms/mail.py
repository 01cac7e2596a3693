"""Send a digest by SMTP."""

import smtplib
import socket
import ssl
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from email.message import EmailMessage
from email.utils import format_datetime
from typing import Any, BinaryIO

from worker.alarms.attempts import AlarmUndelivered, AttemptTime
from worker.alarms.message_text import subject_of, text_of
from worker.settings.alarms import EmailSettings
from zot_artifact_client.text_escaping import bounded
from zot_artifact_client.tls_faults import tls_fault

_READY = 220
_STEPS = 5
"""Timeouts that one attempt takes at most: each command may take one, and servers delay some on purpose."""
_LONGEST_ANSWER = 64 << 10
"""Bytes of the answer to one command."""


def message_of(payload: Mapping[str, Any], settings: EmailSettings, *, at: datetime) -> EmailMessage:
    """Return a digest as a mail. Its Message-ID is the same at each attempt, so that mail programs show it once."""
    message = EmailMessage()
    message["Subject"] = f"[zot-artifacts] {subject_of(payload)}"
    message["From"], message["To"] = settings.sender, ", ".join(settings.recipients)
    message["Date"] = format_datetime(at)
    message["Message-ID"] = f"<{payload['id']}@{settings.sender.rpartition('@')[2]}>"
    message["Auto-Submitted"] = "auto-generated"  # no holiday notice answers it
    message.set_content(text_of(payload) + "\n")
    return message


def send(payload: Mapping[str, Any], settings: EmailSettings, *, at: datetime) -> str | None:
    """Send a digest, and return which recipients the server refused, None if it accepted all.

    Raises:
        AlarmUndelivered: the server accepted no recipient, or cannot be used.
    """
    message = message_of(payload, settings, at=at)
    time = AttemptTime(settings.timeout.total_seconds() * _STEPS)
    try:
        with time, _connected(settings, time) as server:
            if settings.username is not None and settings.password is not None:
                server.login(settings.username, settings.password.get_secret_value())
            refused = server.send_message(message)
    except smtplib.SMTPAuthenticationError as error:
        raise AlarmUndelivered(f"e-mail {settings.server}: it refused the password ({error.smtp_code})") from None
    except smtplib.SMTPRecipientsRefused:
        raise AlarmUndelivered(f"e-mail {settings.server}: it refused all recipients") from None
    except smtplib.SMTPResponseException as error:
        said = bounded(error.smtp_error.decode(errors="replace") if isinstance(error.smtp_error, bytes) else "", 200)
        raise AlarmUndelivered(f"e-mail {settings.server}: it answered {error.smtp_code} {said}") from None
    except (smtplib.SMTPException, OSError) as error:
        if time.is_over:
            late = "the answer took longer than alarms.email.timeout allows"
            raise AlarmUndelivered(f"e-mail {settings.server}: {late}") from None
        ca_file = str(settings.ca_file) if settings.ca_file else None
        if fault := tls_fault(error, trust="alarms.email.ca_file", path=ca_file):
            raise AlarmUndelivered(f"e-mail {settings.server}: {fault}") from None
        said = bounded(getattr(error, "strerror", None) or error, 200)
        raise AlarmUndelivered(f"e-mail {settings.server}: {type(error).__name__}: {said}") from None
    return f"it refused {', '.join(sorted(refused))}" if refused else None


def _connected(settings: EmailSettings, time: AttemptTime) -> "_Smtp":
    (host, port), timeout = settings.address, settings.timeout.total_seconds()
    context = ssl.create_default_context(cafile=str(settings.ca_file) if settings.ca_file else None)
    server = _SecureSmtp(timeout=timeout, context=context) if settings.security == "tls" else _Smtp(timeout=timeout)
    try:
        server.open(host, port, time)
        if settings.security == "starttls":
            server.starttls(context=context)  # raises where the server does not offer it: nothing is sent in the clear
    except BaseException:
        server.close()
        raise
    return server


class _Smtp(smtplib.SMTP):
    """A connection whose answers have a bound."""

    def open(self, host: str, port: int, time: AttemptTime) -> None:
        """Connect, for this time at most. Raise as the constructor does, which would connect without it."""
        self._host = host  # the name that the certificate is for
        self._time = time
        code, said = self.connect(host, port)
        if code != _READY:
            raise smtplib.SMTPConnectError(code, said)

    def getreply(self) -> tuple[int, bytes]:
        """Return the code and the text of an answer. Raise SMTPServerDisconnected, also if it is too long."""
        if self.file is None and self.sock is not None:
            self.file = _Lines(self.sock.makefile("rb"))
        if self.file is not None:
            self.file.left = _LONGEST_ANSWER
        return super().getreply()

    def __exit__(self, *error: object) -> None:
        """Say goodbye. A mail that was accepted is delivered, whatever the server answers to that."""
        with suppress(smtplib.SMTPException, OSError):
            super().__exit__(*error)  # type: ignore[arg-type]  # it takes what a `with` gives

    def _get_socket(self, *place: Any) -> socket.socket:
        return self._time.watch(super()._get_socket(*place))  # type: ignore[misc]  # the stubs leave it out


class _SecureSmtp(smtplib.SMTP_SSL, _Smtp):
    """The same with TLS from the start."""


class _Lines:
    """The lines that a server sends, up to `left` bytes: an answer may have any number of them."""

    def __init__(self, file: BinaryIO) -> None:
        self.left = 0
        self.close = file.close
        self._file = file

    def readline(self, most: int) -> bytes:
        line = self._file.readline(most)
        self.left -= len(line)
        if self.left < 0:
            raise OSError("its answer is too long")
        return line
