"""Say whether two files are a certificate chain and its key, before a server starts with them."""

import ssl
from datetime import datetime
from pathlib import Path

NO_PAIR = "they are no certificate chain with its key, both in PEM and without a password"


def is_chain_with_key(certificate: Path | str, key: Path | str) -> bool:
    """Return whether a server can use these files."""
    if not (Path(certificate).is_file() and Path(key).is_file()):  # to open a FIFO would never return
        return False
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, key, password="")
    except OSError:  # ssl.SSLError is one
        return False
    return True


def out_of_date(certificate: Path | str, now: datetime) -> str | None:
    """Return why clients refuse a chain now that a server can use, or None while all its certificates are valid."""
    from cryptography import x509

    try:
        chain = x509.load_pem_x509_certificates(Path(certificate).read_bytes())
    except ValueError:  # OpenSSL reads more than this library
        return None
    ends, begins = min(each.not_valid_after_utc for each in chain), max(each.not_valid_before_utc for each in chain)
    if ends < now:
        return f"it expired on {ends:%Y-%m-%d}, and clients refuse it: renew it"
    if begins > now:
        return f"it is not valid before {begins:%Y-%m-%d %H:%M} UTC, and clients refuse it: check the clock"
    return None
