"""Say whether two files are a certificate chain and its key, before a server starts with them."""

import ssl
from pathlib import Path

NO_PAIR = "they are no certificate chain with its key, both in PEM and without a password"


def is_chain_with_key(certificate: Path | str, key: Path | str) -> bool:
    """Return whether a server can use these files."""
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, key, password="")
    except OSError:  # ssl.SSLError is one
        return False
    return True
