"""A TLS end in front of a loopback port, with a certificate authority of its own."""

import asyncio
import datetime as dt
import ipaddress
import ssl
import threading
from contextlib import suppress
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


class Authority:
    """A certificate authority; `path` is its own certificate."""

    def __init__(self, directory: Path, name: str) -> None:
        self.path = directory / f"{name}.pem"
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        made = self._begin(self._name, self._key)
        made = made.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        usage = dict.fromkeys(
            ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only"), False
        )
        usage |= {"digital_signature": True, "key_cert_sign": True, "crl_sign": True, "decipher_only": False}
        made = made.add_extension(x509.KeyUsage(**usage), critical=True)
        identity = x509.SubjectKeyIdentifier.from_public_key(self._key.public_key())
        made = made.add_extension(identity, critical=False)
        self.path.write_bytes(made.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))

    def context(self, *, expired: bool = False) -> ssl.SSLContext:
        """Return what a server on 127.0.0.1 needs; with `expired`, its certificate ended an hour ago."""
        key = ec.generate_private_key(ec.SECP256R1())
        left = -dt.timedelta(hours=1) if expired else dt.timedelta(1)
        made = self._begin(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "server")]), key, left)
        address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        made = made.add_extension(address, critical=False)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        made = made.add_extension(issuer, critical=False)
        both = self._directory / "server.pem"
        pem, no_password = serialization.Encoding.PEM, serialization.NoEncryption()
        both.write_bytes(
            key.private_bytes(pem, serialization.PrivateFormat.PKCS8, no_password)
            + made.sign(self._key, hashes.SHA256()).public_bytes(pem)
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(both)
        return context

    def _begin(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, left: dt.timedelta = dt.timedelta(1)
    ) -> x509.CertificateBuilder:
        now = dt.datetime.now(dt.UTC)
        return x509.CertificateBuilder(
            self._name,
            subject,
            key.public_key(),
            x509.random_serial_number(),
            now - dt.timedelta(1),
            now + left,
        )


class TlsProxy:
    """Speak TLS on `port`, and pass the bytes on to a loopback port in the clear. A context manager."""

    def __init__(self, upstream: int, context: ssl.SSLContext) -> None:
        self.port = 0
        self._upstream = upstream
        self._context = context
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(30)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)
        self._loop.close()

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._relay, "127.0.0.1", 0, ssl=self._context)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        relays = asyncio.all_tasks() - {asyncio.current_task()}
        for relay in relays:
            relay.cancel()
        await asyncio.gather(*relays, return_exceptions=True)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._upstream)
        try:
            await asyncio.gather(_pump(reader, back), _pump(there, writer))
        finally:
            back.transport.abort()
            writer.transport.abort()


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await source.read(65536):
            sink.write(data)
            await sink.drain()
    sink.close()
