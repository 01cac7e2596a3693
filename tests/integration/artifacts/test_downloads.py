"""A download is complete or an error, and its job can be interrupted at any time."""

import contextlib
import errno
import hashlib
import os
import resource
import socket
import tempfile
import threading
import time
from base64 import b64encode
from datetime import timedelta
from email.utils import format_datetime
from functools import partial
from pathlib import Path

import google_crc32c
import pytest
from pydantic import ByteSize

from tests.servers.silent_host import SilentHost
from tests.waiting import WITHIN, until
from worker import clock
from worker.artifacts.sources import SourceRefused, open_source, remove_partial
from worker.artifacts.sources.errors import origin_of
from worker.settings import Settings, SettingsError, load_settings
from worker.settings.section_models import SourceSettings
from worker.storage.errors import (
    AccessDenied,
    OutOfSpace,
    PermanentError,
    SizeMismatch,
    Throttled,
    Timeout,
    TransientError,
    Unavailable,
)

DATA = os.urandom(4 << 20)
ZEROS = b64encode(bytes(32)).decode()


class Host:
    """Answers each request with the next of `answers`, bytes as they are; the last one is repeated."""

    def __init__(self):
        self.requests = []
        self.answers = []
        self.closed = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self):
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection):
        with connection, contextlib.suppress(OSError):
            request = b""
            while b"\r\n\r\n" not in request:
                if not (received := connection.recv(65536)):  # the client is gone; to go on would keep a core busy
                    return
                request += received
            self.requests.append(request.decode())
            answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
            if callable(answer):
                answer(connection)
            else:
                connection.sendall(answer)
        self.closed.set()

    def header(self, name, request=-1):
        lines = self.requests[request].split("\r\n")
        return next((line.partition(": ")[2] for line in lines if line.lower().startswith(f"{name.lower()}:")), None)

    def stop(self):
        with contextlib.suppress(OSError):  # it has stopped already
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


def answer(body=b"", status="200 OK", **headers):
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([f"HTTP/1.1 {status}", *lines, "", ""]).encode() + body


def whole(body=DATA, **headers):
    return answer(body, Content_Length=len(body), **headers)


def drip(head=b"", pause=0.05):
    """Send `head`, then a byte now and then, until the other side has gone."""

    def drip(connection):
        connection.sendall(head)
        while True:
            connection.sendall(b"x")
            time.sleep(pause)

    return drip


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def host():
    host = Host()
    yield host
    host.stop()


@pytest.fixture
def settings(tmp_path, host) -> Settings:
    made = load_settings(home=tmp_path / "home", sources=SourceSettings(hosts=(host.url, "http://artifacts.example")))
    made.prepare()
    return made


def having(settings, **changed):
    return settings.model_copy(update={"sources": settings.sources.model_copy(update=changed)})


def fetch(host, settings, path="/app.tgz", **more):
    with open_source(host.url + path, settings, **more) as source:
        source.file.seek(0)
        return source.file.read()


def test_a_broken_download_goes_on_where_it_broke(host, settings):
    """What is missing is asked for by a range of the same version, and the bytes are those of the host."""
    half = len(DATA) // 2
    told = {"Repr_Digest": f"sha-256=:{b64encode(hashlib.sha256(DATA).digest()).decode()}:"}
    rest = told | {"Content_Range": f"bytes {half}-{len(DATA) - 1}/{len(DATA)}", "ETag": '"v1"', "Content_MD5": "AA=="}
    told["Content_MD5"] = b64encode(hashlib.md5(DATA, usedforsecurity=False).digest()).decode()
    host.answers = [
        answer(DATA[:half], Content_Length=len(DATA), ETag='"v1"', **told),
        answer(DATA[half:], "206 Partial Content", Content_Length=len(DATA) - half, **rest),
    ]
    assert fetch(host, settings) == DATA
    assert (host.header("Range"), host.header("If-Range")) == (f"bytes={half}-", '"v1"')


def test_another_version_begins_anew(host, settings):
    """A host that has another version by now sends the whole of it, and nothing of the first one stays."""
    other = os.urandom(3 << 20)
    host.answers = [answer(DATA[: 2 << 20], Content_Length=len(DATA), ETag='"v1"'), whole(other, ETag='"v2"')]
    assert fetch(host, settings) == other


@pytest.mark.parametrize(
    "headers",
    [
        {"Content_Range": f"bytes 0-{len(DATA) - 1}/{len(DATA)}", "ETag": '"v1"'},
        {"Content_Range": f"bytes {2 << 20}-{len(DATA)}/{len(DATA) + 1}", "ETag": '"v1"'},
        {"Content_Range": f"bytes {2 << 20}-{len(DATA) - 1}/{len(DATA)}", "ETag": '"v2"'},
        {"Content_Range": f"bytes {2 << 20}-{len(DATA) - 1}/{len(DATA)}"},  # of which version, nothing tells
        {"Content_Range": f"bytes {2 << 20}-{(2 << 20) + 9}/{len(DATA)}", "ETag": '"v1"'},
        {"Content_Range": f"bytes {2 << 20}-9/{len(DATA)}", "ETag": '"v1"'},
        {"ETag": '"v1"'},
    ],
)
def test_another_range_is_never_joined_to_what_is_there(host, settings, headers):
    """A part of another version, size or place is an error, not the middle of an artifact."""
    host.answers = [
        answer(DATA[: 2 << 20], Content_Length=len(DATA), ETag='"v1"'),
        answer(DATA[2 << 20 :], "206 Partial Content", Content_Length=2 << 20, **headers),
    ]
    with pytest.raises(Unavailable, match="another range"):
        fetch(host, settings)


@pytest.mark.parametrize("etag", [{}, {"ETag": 'W/"v1"'}, {"ETag": "v1"}])
def test_without_a_strong_validator_nothing_is_resumed(host, settings, etag):
    """Where the version cannot be told, a broken download fails with a transient error and asks for no range."""
    host.answers = [answer(DATA[:1000], Content_Length=len(DATA), **etag)]
    with pytest.raises(Unavailable, match="1000"):
        fetch(host, settings)
    assert len(host.requests) == 1


@pytest.mark.parametrize(
    "cut",
    [
        answer(DATA),
        answer(DATA, Content_Length="4 MB"),
        answer(DATA, Content_Length="-1"),
        answer(DATA, Content_Length="4_194_304"),
        answer(DATA, Content_Length=len(DATA), Content_Encoding="gzip"),
        answer(DATA, Transfer_Encoding="gzip"),
        answer(b"5\r\nhello\r\n0\r\n\r\n", Content_Length="5", Transfer_Encoding="chunked"),
    ],
)
def test_an_end_that_the_host_did_not_announce_is_an_error(host, settings, cut):
    """Without a digest, a body is taken only if its host has said where it ends and that it is not coded."""
    host.answers = [cut]
    with pytest.raises(SourceRefused, match="announce"):
        fetch(host, settings)


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        DATA[:1000],
        b"HTTP/1.1 2oo OK\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nServer without a colon\r\nContent-Length: 5\r\n\r\nhello",
        answer(b"hello", Content_Length="5, 6"),
        answer(b"5\r\nhello\r\n", Transfer_Encoding="chunked"),
        answer(b"5\r\nhel", Transfer_Encoding="chunked"),
        answer(b"hell", Content_Length=5),
        answer(b"hello", Content_Length=5, Content_Range="bytes 5-9/10"),
        answer(b"hello", Content_Length=5, Repr_Digest=f"sha-512=:AA==:, sha-256=:{ZEROS}:"),
        answer(b"hello", Content_Length=5, Digest=f"SHA-256={ZEROS}"),
        answer(b"hello", Content_Length=5, Content_MD5=ZEROS[:22] + "=="),
    ],
)
def test_a_broken_answer_is_never_an_artifact(host, settings, broken):
    """An answer that is malformed or cut is a transient error, also where a digest is known."""
    host.answers = [broken]
    with pytest.raises(TransientError):
        fetch(host, settings)


def test_a_body_with_chunks_is_whole_with_its_last_chunk(host, settings):
    """A body in chunks announces its end itself."""
    host.answers = [answer(b"5\r\nhello\r\n0\r\n\r\n", Transfer_Encoding="chunked")]
    assert fetch(host, settings) == b"hello"


@pytest.mark.parametrize(
    "chunks",
    [
        b"+5\r\nhello\r\n0\r\n\r\n",
        b"0x5\r\nhello\r\n0\r\n\r\n",
        b"0_5\r\nhello\r\n0\r\n\r\n",
        b"-5\r\nhello\r\n0\r\n\r\n",
        b"5\r\nhello" + b"ab0\r\n\r\n",
        b"5\r\nhello\n\n0\r\n\r\n",
        b"\r\nhello\r\n0\r\n\r\n",
    ],
)
def test_chunks_that_are_not_framed_as_they_must_be_are_no_body(host, settings, chunks):
    """A size that is no hexadecimal number, or a chunk that ends elsewhere, is a transient error."""
    host.answers = [answer(chunks, Transfer_Encoding="chunked")]
    with pytest.raises(Unavailable):
        fetch(host, settings)


def _in_base64(name, content):
    return b64encode(hashlib.new(name, content, usedforsecurity=False).digest()).decode()


def _crc32c(content):
    return b64encode(google_crc32c.Checksum(content).digest()).decode()


DIGESTS = {
    "Repr-Digest: sha-256=:%s:": partial(_in_base64, "sha256"),
    "Repr-Digest: sha-512=:%s:": partial(_in_base64, "sha512"),
    "Content-Digest: sha-256=:%s:": partial(_in_base64, "sha256"),
    "Digest: SHA-256=%s": partial(_in_base64, "sha256"),
    "Digest: SHA=%s": partial(_in_base64, "sha1"),
    "Digest: MD5=%s": partial(_in_base64, "md5"),
    "Content-MD5: %s": partial(_in_base64, "md5"),
    "x-goog-hash: crc32c=%s": _crc32c,
    "x-goog-hash: crc32c=AAAA,md5=%s": partial(_in_base64, "md5"),
    "X-Checksum-Sha256: %s": lambda content: hashlib.sha256(content).hexdigest(),
    "X-Checksum-Sha512: %s": lambda content: hashlib.sha512(content).hexdigest(),
    "X-Checksum-Sha1: %s": lambda content: hashlib.sha1(content, usedforsecurity=False).hexdigest(),
    "X-Checksum-Md5: %s": lambda content: hashlib.md5(content, usedforsecurity=False).hexdigest().upper(),
}


@pytest.mark.parametrize("header", DIGESTS)
def test_every_digest_that_a_host_announces_is_compared(host, settings, header):
    """In a header and in a trailer alike; the bytes of the right one are taken."""
    right, wrong = ((header % DIGESTS[header](content)).encode() + b"\r\n" for content in (b"hello", b"hullo"))
    chunks = answer(Transfer_Encoding="chunked", Trailer=header.partition(":")[0])[:-2]
    for line in (right, wrong):
        host.answers = [whole(b"hello").replace(b"\r\n\r\n", b"\r\n" + line + b"\r\n")]
        with pytest.raises(Unavailable, match="host announces") if line is wrong else contextlib.nullcontext():
            assert fetch(host, settings) == b"hello"
        host.answers = [chunks + b"\r\n5\r\nhello\r\n0\r\n" + line + b"\r\n"]
        with pytest.raises(Unavailable, match="host announces") if line is wrong else contextlib.nullcontext():
            assert fetch(host, settings) == b"hello"


def test_a_digest_of_other_bytes_than_those_sent_says_nothing(host, settings):
    """Cloud Storage unpacks on the way what is stored packed, and tells the checksum of the packed bytes."""
    packed = {"X_Goog_Hash": f"md5={ZEROS[:22]}==", "X_Goog_Stored_Content_Encoding": "gzip"}
    host.answers = [whole(b"hello", **packed)]
    assert fetch(host, settings) == b"hello"


def test_a_wrong_digest_is_no_matter_where_the_sha256_is_announced(host, settings):
    """The announced one decides: the way out where a host tells a wrong digest."""
    host.answers = [whole(b"hello", X_Checksum_Sha1="0" * 40)]
    with pytest.raises(Unavailable, match="announce their SHA-256"):
        fetch(host, settings)
    assert fetch(host, settings, sha256=hashlib.sha256(b"hello").hexdigest()) == b"hello"


def test_a_digest_of_the_whole_is_compared_after_a_resumption(host, settings):
    """The rest of the bytes arrives by a second connection, and the digest was told on the first one."""
    half = len(DATA) // 2
    for crc32c in (_crc32c(DATA), "AAAAAA=="):
        rest = {"Content_Range": f"bytes {half}-{len(DATA) - 1}/{len(DATA)}", "ETag": '"v1"'}
        host.answers = [
            answer(DATA[:half], Content_Length=len(DATA), ETag='"v1"', X_Goog_Hash=f"crc32c={crc32c}"),
            answer(DATA[half:], "206 Partial Content", Content_Length=len(DATA) - half, **rest),
        ]
        with pytest.raises(Unavailable, match="CRC32C") if crc32c == "AAAAAA==" else contextlib.nullcontext():
            assert fetch(host, settings) == DATA


def test_interim_answers_come_before_the_answer(host, settings):
    """100, 102 and 103 are no answers; a host that sends nothing else is given up."""
    interim = answer(status="100 Continue") + answer(status="103 Early Hints", Link="</app.css>; rel=preload")
    host.answers = [interim + answer(status="102 Processing") + whole(b"hello")]
    assert fetch(host, settings) == b"hello"
    host.answers = [answer(status="103 Early Hints") * 1000]
    with pytest.raises(Unavailable):
        fetch(host, settings)


def test_a_host_that_refuses_the_connection_is_no_slow_one(host, settings):
    """The message has the error of the connection, and no time that was not waited."""
    host.stop()
    with pytest.raises(Unavailable, match="no connection: Connection refused"):
        fetch(host, settings)


def test_an_announced_digest_tells_the_end(host, settings):
    """With the digest of the bytes as they are sent, neither length nor coding is needed."""
    host.answers = [answer(DATA, Content_Encoding="gzip")]
    assert fetch(host, settings, sha256=hashlib.sha256(DATA).hexdigest()) == DATA


def test_a_slow_host_is_given_up(host, settings):
    """A host below the least rate is an error that names the setting, though it never falls silent."""
    host.answers = [drip(answer(Content_Length=len(DATA)))]
    slow = having(settings, min_rate=ByteSize(1024), rate_window=timedelta(seconds=1))
    with pytest.raises(Timeout, match=r"sources\.min_rate"):
        fetch(host, slow)


def test_a_host_at_the_least_rate_is_waited_for(host, settings):
    """Slow is no error above the least rate, whatever the size of the pieces that arrive."""

    def slowly(connection):
        connection.sendall(answer(Content_Length=5000))
        for _ in range(50):
            connection.sendall(b"x" * 100)
            time.sleep(0.05)

    host.answers = [slowly]
    assert fetch(host, having(settings, min_rate=ByteSize(10), rate_window=timedelta(seconds=2))) == b"x" * 5000


def test_an_answer_that_never_ends_to_begin_is_given_up(host, settings, monkeypatch):
    """A host that sends its headers byte by byte holds a worker no longer than a silent one."""
    monkeypatch.setattr("worker.artifacts.sources.download._CONNECT_SECONDS", 0.5)
    host.answers = [drip(b"HTTP/1.1 200 OK\r\nX: ")]
    with pytest.raises(Timeout, match="no answer"):
        fetch(host, having(settings, timeout=timedelta(seconds=1)))
    assert host.closed.wait(WITHIN)


@pytest.mark.parametrize("stuck", [b"", answer(Content_Length=5), answer(b"hel", Content_Length=5)])
def test_a_job_leaves_a_host_that_sends_nothing(host, settings, stuck):
    """What the heartbeat raises ends the download within seconds, and its connection with it."""

    def stand_still(connection):
        connection.sendall(stuck)
        connection.recv(1)

    host.answers = [stand_still]

    def heartbeat():
        if host.requests:
            raise InterruptedError

    begun = time.monotonic()
    with pytest.raises(InterruptedError):
        fetch(host, settings, heartbeat=heartbeat)
    assert time.monotonic() - begun < 50  # a silent host is given up after 60
    assert host.closed.wait(WITHIN)


def test_no_download_is_larger_than_the_settings_allow(host, settings):
    """The announced size is refused before a byte is read, and one that was not announced when it is passed."""
    small = having(settings, max_size=ByteSize(1000))
    for body in (answer(Content_Length=1001), answer(DATA, Transfer_Encoding="identity")):
        host.answers = [body]
        with pytest.raises(SizeMismatch, match=r"sources\.max_size"):
            fetch(host, small, sha256="0" * 64)


def test_a_download_that_finds_no_room_names_the_directory(host, settings):
    """The operator has to know which disk of the worker is full."""
    host.answers = [whole()]
    least, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, most))
    try:
        with pytest.raises(OutOfSpace, match=f"app.tgz: the download: File too large; make room in {settings.home}"):
            fetch(host, settings)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (least, most))


def test_a_host_that_is_busy_says_for_how_long(host, settings):
    """Retry-After is read as seconds and as a date; anything else is no delay."""
    later = format_datetime(clock.now() + timedelta(seconds=90), usegmt=True)
    for said, low, high in (("17", 17, 17), (later, 80, 90), ("Thu, 01 Jan 1970 00:00:00 GMT", 0, 0)):
        for status, kind in (("503 Busy", Throttled), ("502 Bad", Unavailable)):
            host.answers = [answer(status=status, Retry_After=said)]
            with pytest.raises(kind) as busy:
                fetch(host, settings)
            assert low <= busy.value.retry_after <= high
    for said in ("soon", "²", "Thu, 99 Jan 1970"):
        host.answers = [f"HTTP/1.1 429 Busy\r\nRetry-After: {said}\r\n\r\n".encode("latin-1", "replace")]
        with pytest.raises(Throttled) as busy:
            fetch(host, settings)
        assert busy.value.retry_after is None


def test_a_refusal_says_what_it_is(host, settings):
    """401 and 403 are told apart, and neither error shows what the URL holds beside its path."""
    for status, says in (("401 Unauthorized", "credentials"), ("403 Forbidden", "forbids")):
        host.answers = [answer(status=status)]
        with pytest.raises(AccessDenied, match=says) as refused:
            fetch(host, settings, path="/app.tgz?session=abc123#part-xyz")
        assert "/app.tgz" in refused.value.message
        assert not {"session", "abc123", "part-xyz"} & set(refused.value.message.replace("?", " ").split())
        assert "abc123" not in refused.value.message


def test_no_part_of_a_redirect_that_may_be_secret_is_shown(host, settings):
    """A redirect to another host is refused without its user, password and query."""
    host.answers = [answer(status="302 Found", Location="http://me:pass@elsewhere.example/b?sig=abc123#xyz")]
    with pytest.raises(SourceRefused, match=r"http://elsewhere\.example is not") as refused:
        fetch(host, settings)
    assert not [secret for secret in ("me:", "pass", "abc123", "xyz") if secret in refused.value.message]
    with pytest.raises(SourceRefused) as refused, open_source("ftp://me:pass@host/a?sig=abc123", settings):
        pass
    assert not [secret for secret in ("me:", "pass", "abc123") if secret in refused.value.message]


@pytest.mark.parametrize(
    "location",
    [
        "file:///etc/passwd",
        "//127.0.0.1:1/x",
        "http://169.254.169.254/latest/meta-data",
        "http://127.0.0.1:1\\@artifacts.example/x",  # one parser takes this for a password, another one for a path
        "http://127.0.0.1:1#@artifacts.example/x",
        "http://artifacts.example@127.0.0.1:1/x",
        "http://artifacts.example:http/x",
        "http://[::1/x",
        "gopher://artifacts.example/x",
    ],
)
def test_a_redirect_leads_to_no_other_host(host, settings, location):
    """Only the host that is connected to counts, however the address is spelt."""
    host.answers = [answer(status="302 Found", Location=location)]
    with pytest.raises(SourceRefused, match="is not a configured host|no URL"):
        fetch(host, settings)
    assert len(host.requests) == 1


def test_a_host_is_allowed_in_every_spelling_of_its_address(host, settings):
    """Case and the default port make no other host of it; a path or a user in the setting is one line."""
    host.answers = [whole(b"hello")]
    named = having(settings, hosts=(host.url.replace("http", "HTTP"),))
    assert fetch(host, named) == b"hello"
    assert origin_of("HTTPS://Builds.Example:443/x") == origin_of("https://builds.example")
    for wrong in ("builds.example/path", "https://user:hush@builds.example", "ftp://builds.example", "a b", ""):
        with pytest.raises(SettingsError, match=r"sources\.hosts: ") as caught:
            load_settings(sources={"hosts": [wrong]})
        assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    "second",
    [
        answer(DATA[2 << 20 :] + b"more", "206 Partial Content", Transfer_Encoding="chunked", ETag='"v1"'),
        answer(DATA[2 << 20 :], "206 Partial Content", Content_Encoding="gzip", ETag='"v1"'),
        answer(status="416 Range Not Satisfiable", Content_Length=0),
    ],
    ids=["more_than_announced", "coded", "shorter_by_now"],
)
def test_a_rest_that_does_not_fit_is_never_joined(host, settings, second):
    """Without an announced digest what is resumed is the host's whole, or nothing of it is kept."""
    head, _, body = second.partition(b"\r\n\r\n")
    if b"chunked" in head:
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    if b" 206 " in head:
        head += b"\r\nContent-Range: bytes %d-%d/%d" % (2 << 20, len(DATA) - 1, len(DATA))
        head += b"" if b"chunked" in head else b"\r\nContent-Length: %d" % len(body)
    host.answers = [answer(DATA[: 2 << 20], Content_Length=len(DATA), ETag='"v1"'), head + b"\r\n\r\n" + body]
    with pytest.raises((TransientError, SourceRefused)):
        fetch(host, settings, job="one")
    host.answers = [whole(ETag='"v2"')]
    assert fetch(host, settings, job="one") == DATA
    assert host.header("Range") is None


def test_what_our_own_disk_changes_is_never_taken_for_the_hosts_bytes(host, settings):
    """A download whose bytes rot in the data directory before they are hashed is received again."""
    for size in (1000, len(DATA)):
        host.answers = [whole(DATA[:size], ETag='"v1"')]
        with contextlib.suppress(Unavailable), open_source(host.url, settings, job="j") as source:
            received = settings.staging_dir / "j" / ".zot-download"
            received.write_bytes(b"rot" + received.read_bytes()[3:])
            with pytest.raises(Unavailable, match="has not kept the bytes"):
                source.hashed(None, lambda _: None)
            raise Unavailable("as the job ends")
        with open_source(host.url, settings, job="j") as source:
            assert source.hashed(None, lambda _: None).digest.sha256 == hashlib.sha256(DATA[:size]).hexdigest()
            assert host.header("If-None-Match") is None


def test_the_host_learns_who_asks(host, settings):
    """A request has a User-Agent of ours and asks for uncoded bytes."""
    host.answers = [whole(b"hello")]
    fetch(host, settings)
    assert host.header("User-Agent").startswith("zot-artifact-worker/")
    assert host.header("Accept-Encoding") == "identity"


def test_the_proxy_of_the_environment_is_used(host, settings, monkeypatch):
    """A host behind a proxy is asked through it, with the proxy's credentials, unless no_proxy names the host."""
    monkeypatch.setenv("http_proxy", host.url.replace("http://", "http://me:s%40cret@"))
    host.answers = [whole(b"hello")]
    with open_source("http://artifacts.example/app.tgz", settings) as source:
        assert source.size == 5
    assert host.requests[-1].startswith("GET http://artifacts.example/app.tgz HTTP/1.1")
    assert host.header("Proxy-Authorization") == "Basic bWU6c0BjcmV0"
    monkeypatch.setenv("no_proxy", "127.0.0.0/8")
    assert fetch(host, settings) == b"hello"
    assert host.requests[-1].startswith("GET /app.tgz HTTP/1.1")


@pytest.mark.parametrize(
    "proxy",
    [
        "http://me:hunter2@proxy.example:port",
        "http://me:hunter2/x@proxy.example:1",
        "http://[::1",
        "[",
        "http://",
        "http://me:hunter2@a b:1",
        f"http://me:hunter2@{'a' * 64}",
        "http://me:hunter2@proxy.example:99999",
        "socks5://me:hunter2@proxy.example",
    ],
)
def test_a_proxy_that_cannot_be_used_is_refused(host, settings, monkeypatch, proxy):
    """An environment with a proxy that is none is one line without its password, and no request."""
    monkeypatch.setenv("http_proxy", proxy)
    with pytest.raises(SourceRefused, match=r"proxy that the environment names|proxy of the kind socks5") as refused:
        fetch(host, settings)
    assert "hunter2" not in refused.value.message
    assert host.requests == []


def test_a_proxy_that_hangs_is_named(settings, monkeypatch):
    """The host may be well: it was never asked."""
    with SilentHost() as proxy:
        monkeypatch.setenv("http_proxy", proxy.origin.replace("http://", "http://me:hunter2@"))
        with (
            pytest.raises(Timeout, match=f"app.tgz through the proxy {proxy.origin}: no answer within") as told,
            open_source("http://artifacts.example/app.tgz", having(settings, timeout=timedelta(seconds=0.1))),
        ):
            pass
    assert "hunter2" not in told.value.message


def test_certificates_that_cannot_be_read_are_named(host, settings, monkeypatch, tmp_path):
    """The error says what TLS failed with, and which variables name the files."""
    named = having(settings, hosts=(host.url.replace("http:", "https:"),))
    for bundle in (tmp_path / "absent.pem", Path(__file__)):
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(bundle))
        with (
            pytest.raises(TransientError, match=r"TLS failed \([A-Za-z_ ]+\).*REQUESTS_CA_BUNDLE"),
            open_source(f"{named.sources.hosts[0]}/app.tgz", named),
        ):
            pass


def test_a_redirect_without_a_place_is_named(host, settings):
    """It is no circle of redirects."""
    host.answers = [answer(status="302 Found")]
    with pytest.raises(SourceRefused, match="302 without a Location"):
        fetch(host, settings)
    assert len(host.requests) == 1


def test_a_download_leaves_no_descriptor_and_no_thread(host, settings, monkeypatch):
    """A download that succeeds, breaks or is refused leaves neither connection nor thread nor file.

    A directory for its bytes that is gone is named, and is no source that is gone; a disk that fails may recover.
    """
    fetched = [
        whole(b"hello"),
        answer(b"5\r\nhel", Transfer_Encoding="chunked"),
        answer(b"x", status="403 Forbidden"),
        answer(b"hello", Content_Length="5, 6"),
    ]
    before = len(list(Path("/proc/self/fd").iterdir()))
    threads = {thread for thread in threading.enumerate() if thread.name == "download"}
    for each in fetched * 5:
        host.answers = [each]
        with contextlib.suppress(TransientError, AccessDenied):
            fetch(host, settings)
    assert {thread for thread in threading.enumerate() if thread.name == "download"} == threads
    assert not list(settings.spool_dir.iterdir())

    def broken(**_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "TemporaryFile", broken)
        with pytest.raises(Unavailable, match="the file of the download"):
            fetch(host, settings)
    for directory, job in ((settings.spool_dir, None), (settings.staging_dir, "job")):
        directory.rmdir()
        with pytest.raises(PermanentError, match=f"no file can be made in {directory}: No such file"):
            fetch(host, settings, job=job)
    until(lambda: len(list(Path("/proc/self/fd").iterdir())) <= before)  # the host's own threads end a moment later


def test_the_next_attempt_goes_on_where_the_last_one_was_interrupted(host, settings):
    """A job that was requeued asks for what is missing, and for nothing if all was there; its end leaves no file."""
    half = len(DATA) // 2

    def stuck(connection):
        connection.sendall(answer(DATA[:half], Content_Length=len(DATA), ETag='"v1"'))
        connection.recv(1)

    def heartbeat():
        if (settings.staging_dir / "job-1" / ".zot-download").stat().st_size == half:
            raise InterruptedError

    host.answers = [stuck]
    with pytest.raises(InterruptedError):
        fetch(host, settings, job="job-1", heartbeat=heartbeat)

    rest = {"Content_Range": f"bytes {half}-{len(DATA) - 1}/{len(DATA)}", "ETag": '"v1"'}
    host.answers = [answer(DATA[half:], "206 Partial Content", Content_Length=len(DATA) - half, **rest)]
    with contextlib.suppress(Unavailable), open_source(f"{host.url}/app.tgz", settings, job="job-1") as source:
        assert (source.size, host.header("Range")) == (len(DATA), f"bytes={half}-")
        raise Unavailable("a store is away")

    host.answers = [answer(status="304 Not Modified", ETag='"v1"')]
    assert fetch(host, settings, job="job-1") == DATA
    assert host.header("If-None-Match") == '"v1"'
    assert not list(settings.staging_dir.iterdir())


def test_bytes_that_an_attempt_left_are_used_only_as_it_left_them(host, settings):
    """What a crash has damaged, the disk does not give back, another job has left, or is of another URL comes anew."""
    half = len(DATA) // 2

    def interrupted(job):
        host.answers = [answer(DATA[:half], Content_Length=len(DATA), ETag='"v1"'), answer(status="500 Broken")]
        with pytest.raises(TransientError):
            fetch(host, settings, job=job)
        return settings.staging_dir / job / ".zot-download"

    damaged = interrupted("job-1")
    with damaged.open("r+b") as file:
        file.seek(1000)
        file.write(bytes(1000))
    unreadable = interrupted("job-4").with_name(".zot-download.json")
    unreadable.unlink()
    unreadable.symlink_to(unreadable)
    for job, path in (("job-1", "/app.tgz"), ("job-2", "/app.tgz"), ("job-3", "/other.tgz"), ("job-4", "/app.tgz")):
        if job == "job-3":
            interrupted(job)
        host.answers = [whole(ETag='"v1"')]
        assert fetch(host, settings, path=path, job=job) == DATA
        assert host.header("Range") is None
    interrupted("job-5")
    remove_partial(settings, "job-5")
    assert not list(settings.staging_dir.iterdir())
