"""Send a digest by SMTP."""

import smtplib
import ssl
from collections.abc import Mapping
from datetime import datetime
from email.message import EmailMessage
from email.utils import format_datetime
from typing import Any

from worker.alarms.errors import AlarmUndelivered
from worker.alarms.message_text import subject_of, text_of
from worker.settings.alarms import EmailSettings
from zot_artifact_client.text_escaping import bounded
from zot_artifact_client.tls_faults import tls_fault


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
    try:
        with _connected(settings) as server:
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
        ca_file = str(settings.ca_file) if settings.ca_file else None
        if fault := tls_fault(error, trust="alarms.email.ca_file", path=ca_file):
            raise AlarmUndelivered(f"e-mail {settings.server}: {fault}") from None
        said = bounded(getattr(error, "strerror", None) or error, 200)
        raise AlarmUndelivered(f"e-mail {settings.server}: {type(error).__name__}: {said}") from None
    return f"it refused {', '.join(sorted(refused))}" if refused else None


def _connected(settings: EmailSettings) -> smtplib.SMTP:
    (host, port), timeout = settings.address, settings.timeout.total_seconds()
    context = ssl.create_default_context(cafile=str(settings.ca_file) if settings.ca_file else None)
    if settings.security == "tls":
        return smtplib.SMTP_SSL(host, port, timeout=timeout, context=context)
    server = smtplib.SMTP(host, port, timeout=timeout)
    if settings.security == "starttls":
        try:
            server.starttls(context=context)  # raises where the server does not offer it: nothing is sent in the clear
        except BaseException:
            server.close()
            raise
    return server
