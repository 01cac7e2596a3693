"""Alarms reach real receivers, signed or encrypted, and what does not arrive is tried again and shown."""

import hashlib
import hmac
import json
import re
import socket
import threading
from base64 import b64decode, b64encode
from collections.abc import Iterator
from datetime import timedelta
from email import message_from_bytes
from email.policy import default
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from tests.servers.tls import Authority, TlsProxy
from tests.unit.alarms.receivers import Mailbox, http_receiver, raw_receiver, smtp_receiver
from worker import clock
from worker.alarms.attempts import AlarmUndelivered
from worker.alarms.delivery import deliver, deliver_pending
from worker.alarms.webhook import signed
from worker.catalogue import Catalogue, FindingKind, NewFinding
from worker.settings.alarms import AlarmSettings, EmailSettings, WebhookSettings

SECRET = "a secret of the receiver"
HOUR = timedelta(hours=1)


@pytest.fixture
def catalogue(tmp_path: Path) -> Iterator[Catalogue]:
    url = f"sqlite:///{tmp_path / 'catalogue.sqlite3'}"
    opened = Catalogue(url)
    yield opened
    opened.close()


@pytest.fixture
def payload(catalogue: Catalogue) -> dict[str, Any]:
    """Return a digest of one bad copy, whose key tries to inject a header."""
    open_(catalogue, "app\r\nBcc: eve@evil.example")
    now = clock.now()
    catalogue.alarms.make_digest(["log"], quiet=(), escalate=HOUR, now=now)
    [digest] = catalogue.alarms.claim(["log"], now=now, until=now)
    return dict(digest.payload)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"), "mail")


def open_(catalogue: Catalogue, key: str) -> None:
    catalogue.findings.see([NewFinding(FindingKind.CORRUPT, "dr", "releases", key, 1)], now=clock.now())


def webhook(url: str, secret: str = SECRET, **more: Any) -> AlarmSettings:
    made = WebhookSettings(url=SecretStr(url), secret=SecretStr(secret), **more)
    return AlarmSettings(log=False, webhook=made)


def email(server: str, **more: Any) -> AlarmSettings:
    made = EmailSettings(server=server, sender="zot@builds.example", recipients=("ops@builds.example",), **more)
    return AlarmSettings(log=False, email=made)


def run(catalogue: Catalogue, settings: AlarmSettings, later: timedelta = timedelta()):
    """Do what the periodic task does."""
    now = clock.now() + later
    catalogue.alarms.make_digest(settings.channels, quiet=settings.quiet, escalate=settings.escalate, now=now)
    return deliver_pending(catalogue.alarms, catalogue.findings, settings, now=now)


def test_a_webhook_is_signed_as_standard_webhooks_describes(payload) -> None:
    """A receiver that has the key recomputes the signature from id, time and body."""
    key = b"0123456789abcdef0123456789abcdef"
    with http_receiver() as (url, received):
        deliver(payload, "webhook", webhook(url, f"whsec_{b64encode(key).decode()}"), at=clock.now())
    [(headers, body)] = received
    content = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = b64encode(hmac.new(key, content, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"
    assert abs(int(headers["webhook-timestamp"]) - clock.now().timestamp()) < 300
    assert json.loads(body)["opened"][0]["count"] == 1
    assert json.loads(body)["id"] == headers["webhook-id"]


def test_the_signature_is_that_of_the_specification() -> None:
    """The test vector of Standard Webhooks, so that receivers can use its libraries."""
    key = b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    content = b'msg_p5jXN8AQM9LWM0D4loKWxJek.1614265330.{"test": 2432232314}'
    assert b64encode(hmac.new(key, content, hashlib.sha256).digest()) == b"g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    body, headers = signed({"id": "msg_1"}, key, at=clock.now())
    again = b".".join((b"msg_1", headers["webhook-timestamp"].encode(), body))
    assert headers["webhook-signature"] == f"v1,{b64encode(hmac.new(key, again, hashlib.sha256).digest()).decode()}"


def test_a_failed_webhook_is_sent_again_under_its_id_until_it_is_accepted(catalogue: Catalogue) -> None:
    """The failure is a finding meanwhile, later digests wait behind it, and nothing is sent twice afterwards."""
    open_(catalogue, "a")
    with http_receiver([500, 503, 500]) as (url, received):
        settings = webhook(url)
        assert run(catalogue, settings) == ({}, {"webhook": "webhook 127.0.0.1: it answered with status 500"})
        assert run(catalogue, settings) == ({}, {})  # the backoff has not passed
        assert run(catalogue, settings, HOUR)[1] == {"webhook": "webhook 127.0.0.1: it answered with status 503"}
        [found] = catalogue.findings.page(kind=FindingKind.ALARM_UNDELIVERED)
        assert "1 waiting since" in found.evidence["detail"]
        assert "status 503" in found.evidence["detail"]
        assert run(catalogue, settings, 3 * HOUR)[0] == {}  # the second, which tells that the first is late, waits
        assert run(catalogue, settings, 6 * HOUR)[0] == {"webhook": 2}
        assert catalogue.findings.page(kind=FindingKind.ALARM_UNDELIVERED) == []
        assert run(catalogue, settings, 9 * HOUR)[0] == {"webhook": 1}  # that this is resolved
        assert run(catalogue, settings, 20 * HOUR) == ({}, {})
    ids = [headers["webhook-id"] for headers, _ in received]
    assert (len(ids), len(set(ids)), len(set(ids[:4]))) == (6, 3, 1)
    times = [headers["webhook-timestamp"] for headers, _ in received]
    assert times[0] < times[1] < times[2] < times[3]


def test_an_interim_answer_of_a_receiver_is_not_the_answer(payload) -> None:
    """A digest has arrived when the final answer accepts it, and not when 102 or 103 come before another answer."""
    interim = b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\n\r\n"
    with http_receiver([500], interim=interim) as (url, received):
        with pytest.raises(AlarmUndelivered, match="status 500"):
            deliver(payload, "webhook", webhook(url), at=clock.now())
        deliver(payload, "webhook", webhook(url), at=clock.now())
    assert len(received) == 2
    with http_receiver(interim=interim * 1000) as (url, _), pytest.raises(AlarmUndelivered):
        deliver(payload, "webhook", webhook(url), at=clock.now())


def test_a_redirect_is_not_followed(payload) -> None:
    """The digest goes to the host that the settings name and to no other one."""
    with (
        http_receiver() as (other, reached),
        http_receiver([307], headers={"location": other}) as (url, _),
        pytest.raises(AlarmUndelivered, match="status 307"),
    ):
        deliver(payload, "webhook", webhook(url), at=clock.now())
    assert reached == []


def test_a_webhook_trusts_the_authority_that_its_error_asks_for(
    payload, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names a variable; with the authority's certificate in it the digest arrives."""
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    with http_receiver() as (url, received), TlsProxy(int(url.rpartition(":")[2]), authority.context()) as tls:
        settings = webhook(f"https://127.0.0.1:{tls.port}")
        with pytest.raises(AlarmUndelivered, match="authority's certificate in REQUESTS_CA_BUNDLE"):
            deliver(payload, "webhook", settings, at=clock.now())
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority.path))
        deliver(payload, "webhook", settings, at=clock.now())
        assert len(received) == 1
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/absent.pem")
        with pytest.raises(AlarmUndelivered, match="REQUESTS_CA_BUNDLE names /absent.pem, which does not exist"):
            deliver(payload, "webhook", settings, at=clock.now())
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", __file__)
        with pytest.raises(AlarmUndelivered, match="file that REQUESTS_CA_BUNDLE names has no certificates"):
            deliver(payload, "webhook", settings, at=clock.now())
    with pytest.raises(AlarmUndelivered, match="refused or closed the connection"):
        deliver(payload, "webhook", webhook(url), at=clock.now())


@pytest.mark.parametrize(
    "proxy", ["http://me:hush@proxy.example:port", "socks5://me:hush@proxy.example", "http://me:hu#sh@p"]
)
def test_a_proxy_that_cannot_be_used_is_told(payload, proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says that it is the proxy of the environment, and shows no part of its password."""
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    for name in ("https_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(AlarmUndelivered, match=r"webhook alarms\.example: .*the environment names") as refused:
        deliver(payload, "webhook", webhook("https://alarms.example/T0KEN"), at=clock.now())
    assert not {"hush", "hu", "sh", "T0KEN"} & set(re.split(r"\W", str(refused.value)))


def test_no_error_shows_the_address_or_a_secret(payload) -> None:
    """The path of a webhook is a password at many services."""
    with http_receiver([400]) as (url, _), pytest.raises(AlarmUndelivered) as refused:
        deliver(payload, "webhook", webhook(f"{url}/services/T0KEN?k=T0KEN"), at=clock.now())
    with pytest.raises(AlarmUndelivered) as away:  # nothing listens there any more
        deliver(payload, "webhook", webhook(f"{url}/services/T0KEN?k=T0KEN"), at=clock.now())
    settings = webhook(f"{url}/services/T0KEN")
    for text in (str(refused.value), str(away.value), repr(settings), str(settings)):
        assert "T0KEN" not in text
        assert SECRET not in text
    assert away.value.__cause__ is None


@pytest.mark.parametrize(
    ("channel", "begin", "piece", "end"),
    [
        ("webhook", b"HTTP/1.1 204 No Content\r\n", b"X: y\r\n", b"\r\n"),
        ("email", b"", b"220-y\r\n", b"220 y\r\n"),
    ],
)
def test_a_receiver_that_sends_without_end_is_given_up(payload, channel: str, begin: bytes, piece: bytes, end: bytes):
    """Its small pieces keep each single read short; the other channels wait until the attempt ends."""
    given_up = threading.Event()

    def answer(connection: socket.socket) -> None:
        connection.sendall(begin)
        for _ in range(60):
            connection.sendall(piece)
            if given_up.wait(0.1):
                return
        connection.sendall(end)  # a client that waits for so long accepts it, and goes on
        connection.recv(1)

    with raw_receiver(answer) as place:
        short = {"timeout": timedelta(seconds=0.5)}
        settings = (
            webhook(f"http://{place}", **short) if channel == "webhook" else email(place, security="none", **short)
        )
        with pytest.raises(AlarmUndelivered, match=rf"the answer took longer than alarms\.{channel}\.timeout allows"):
            deliver(payload, channel, settings, at=clock.now())
        given_up.set()


def test_a_mail_server_whose_answer_is_too_long_is_given_up(payload) -> None:
    """The lines of one answer of SMTP have no end of their own, and each of them is kept."""

    def answer(connection: socket.socket) -> None:
        for _ in range(1000):
            connection.sendall(b"220-" + b"x" * 4000 + b"\r\n")
        connection.sendall(b"220 y\r\n")

    with raw_receiver(answer) as place, pytest.raises(AlarmUndelivered, match="its answer is too long"):
        deliver(payload, "email", email(place, security="none"), at=clock.now())


@pytest.mark.parametrize("goodbye", ["500 what?", "421 too busy"])
def test_a_mail_that_was_accepted_is_delivered_whatever_follows(payload, goodbye: str) -> None:
    """An error of QUIT would send the mail again each hour."""
    mailbox = Mailbox(goodbye=goodbye)
    with smtp_receiver(mailbox, None) as server:
        assert deliver(payload, "email", email(server, security="none"), at=clock.now()) is None
    assert len(mailbox.mails) == 1


@pytest.mark.parametrize("at_once", [False, True], ids=["starttls", "tls"])
def test_a_mail_arrives_encrypted_and_with_the_password(payload, authority: Authority, *, at_once: bool) -> None:
    """The certificate is verified, the server gets the password after that, and a key injects no header."""
    mailbox = Mailbox()
    password: dict[str, Any] = {} if at_once else {"username": "zot", "password": SecretStr("pw")}
    security = "tls" if at_once else "starttls"
    with smtp_receiver(mailbox, authority.context(), password=None if at_once else b"pw", at_once=at_once) as server:
        settings = email(server, security=security, ca_file=authority.path, **password)
        assert deliver(payload, "email", settings, at=clock.now()) is None
    [(recipients, content)] = mailbox.mails
    mail = message_from_bytes(content, policy=default)
    assert recipients == ["ops@builds.example"]
    assert mail["Subject"] == "[zot-artifacts] 1 corrupt opened in dr"
    assert mail["Message-ID"] == f"<{payload['id']}@builds.example>"
    assert mail["Bcc"] is None
    text = mail.get_content()
    assert r"releases/app\r\nBcc: eve@evil.example" in text
    assert "open now: 1 corrupt" in text


def test_a_mail_server_that_is_not_trusted_gets_nothing(payload, authority: Authority) -> None:
    """Neither one with another certificate, nor one without TLS, nor a wrong password."""
    mailbox = Mailbox()
    untrusted = pytest.raises(AlarmUndelivered, match="certificate is not trusted; .* in alarms.email.ca_file")
    with smtp_receiver(mailbox, authority.context()) as server, untrusted:
        deliver(payload, "email", email(server), at=clock.now())
    absent = authority.path.with_name("absent.pem")
    with smtp_receiver(mailbox, authority.context()) as server, pytest.raises(AlarmUndelivered, match="does not exist"):
        deliver(payload, "email", email(server, ca_file=absent), at=clock.now())
    with smtp_receiver(mailbox, None) as server, pytest.raises(AlarmUndelivered, match="STARTTLS"):
        deliver(payload, "email", email(server, ca_file=authority.path), at=clock.now())
    with smtp_receiver(mailbox, authority.context(), password=b"pw") as server:
        settings = email(server, ca_file=authority.path, username="zot", password=SecretStr("w0rd"))
        with pytest.raises(AlarmUndelivered, match="refused the password") as error:
            deliver(payload, "email", settings, at=clock.now())
    assert "w0rd" not in str(error.value)
    assert mailbox.mails == []


def test_a_refused_recipient_is_told_and_does_not_stop_the_others(payload) -> None:
    """The digest is delivered; a server that accepts no recipient has not delivered it."""
    mailbox = Mailbox(refused=["gone@builds.example"])
    recipients = ("ops@builds.example", "gone@builds.example")
    with smtp_receiver(mailbox, None) as server:
        both = EmailSettings(server=server, security="none", sender="zot@builds.example", recipients=recipients)
        assert deliver(payload, "email", AlarmSettings(email=both), at=clock.now()) == "it refused gone@builds.example"
        none = both.model_copy(update={"recipients": recipients[1:]})
        with pytest.raises(AlarmUndelivered, match="refused all recipients"):
            deliver(payload, "email", AlarmSettings(email=none), at=clock.now())
    assert len(mailbox.mails) == 1


def test_the_log_has_a_line_for_each_group(payload, caplog: pytest.LogCaptureFixture) -> None:
    """The log channel needs no setting; a key that holds a line end stays in its line."""
    caplog.set_level("INFO")
    deliver(payload, "log", AlarmSettings(), at=clock.now())
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0].startswith(f"alarm {payload['id']}: 1 corrupt opened in dr")
    assert all("\n" not in line for line in lines)
    assert caplog.records[0].levelname == "ERROR"
