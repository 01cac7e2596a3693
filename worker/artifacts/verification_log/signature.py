"""Sign the head of the verification log with an Ed25519 key, so that a forged head shows."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from worker.settings.section_models import VerificationLogSettings

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey


class BadKeyFile(Exception):
    """A configured key file cannot be used; the message names it."""


@dataclass(frozen=True)
class LogKeys:
    """The key that signs heads, and the keys whose signatures count; without any, heads are not signed or checked."""

    signing_key: Path | None = None
    public_keys: Sequence[Path] = ()

    @classmethod
    def of(cls, settings: VerificationLogSettings) -> "LogKeys":
        """Return the configured keys; the files are read when they are first needed."""
        return cls(settings.signing_key, settings.public_keys)

    @property
    def configured(self) -> bool:
        """Return whether heads must be signed."""
        return self.signing_key is not None or bool(self.public_keys)

    def sign(self, content: bytes) -> str | None:
        """Return the signature in base64, None without a key.

        Raises:
            BadKeyFile: the key cannot be read.
        """
        key = self._private
        return None if key is None else base64.b64encode(key.sign(content)).decode()

    def is_signed(self, content: bytes, signature: str) -> bool:
        """Return whether one of the keys made a signature.

        Raises:
            BadKeyFile: a key cannot be read.
        """
        from cryptography.exceptions import InvalidSignature

        try:
            raw = base64.b64decode(signature, validate=True)
        except ValueError:
            return False
        for key in self._public:
            try:
                key.verify(raw, content)
            except InvalidSignature:
                continue
            return True
        return False

    @cached_property
    def _private(self) -> "Ed25519PrivateKey | None":
        if self.signing_key is None:
            return None
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        try:
            key = load_pem_private_key(_content(self.signing_key, "signing_key"), password=None)
        except (ValueError, TypeError):
            key = None
        if not isinstance(key, Ed25519PrivateKey):
            raise BadKeyFile(
                f"verification_log.signing_key: {self.signing_key} has no unencrypted Ed25519 private key in PEM"
            )
        return key

    @cached_property
    def _public(self) -> list["Ed25519PublicKey"]:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        from cryptography.hazmat.primitives.serialization import load_pem_public_key

        keys = [self._private.public_key()] if self._private is not None else []
        for path in self.public_keys:
            try:
                key = load_pem_public_key(_content(path, "public_keys"))
            except ValueError:
                key = None
            if not isinstance(key, Ed25519PublicKey):
                raise BadKeyFile(f"verification_log.public_keys: {path} has no Ed25519 public key in PEM")
            keys.append(key)
        return keys


def _content(path: Path, setting: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadKeyFile(f"verification_log.{setting}: {path}: {error.strerror}") from None
