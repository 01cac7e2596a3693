"""Say what is wrong with the TLS of a server, and the way out, from the error of any library."""

import ssl
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

TRUST = "SSL_CERT_FILE"
"""The environment variable that names the certificates of authorities for Python's own HTTPS."""
_NAME, _ADDRESS = 62, 64
_UNTRUSTED = {2, 18, 19, 20, 21}
_NOT_YET, _EXPIRED = 9, 10
"""OpenSSL's codes of what is wrong with a certificate."""
_NO_TLS = {"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST", "UNKNOWN_PROTOCOL", "PACKET_LENGTH_TOO_LONG"}
"""OpenSSL's words for an answer that is no TLS."""
_NO_CERTIFICATES = {"NO_CERTIFICATE_OR_CRL_FOUND", "NO_START_LINE"}
"""OpenSSL's words for a file of authorities that has none."""
_NAME_ERROR = "CertificateError"
"""The class of urllib3 for this: a ValueError, which botocore has instead of an error of `ssl`."""
_OTHER_NAME = "its certificate is for another host name; use a name that it is for, or issue it for this one"
_LONGEST_CHAIN = 32


def tls_fault(error: BaseException, *, trust: str, path: str | None = None, own: str = "") -> str | None:
    """Return why the TLS of a server cannot be used, and what to do; None if the error is about something else.

    Args:
        error: what a library raised, with the errors that caused it.
        trust: the setting that names the certificates of authorities.
        path: what that setting names.
        own: the setting that names the client's own certificate, if there is one.
    """
    if path and not Path(path).exists():  # each library has another error for it
        return no_authorities(trust, path)
    for each in causes(error):
        if isinstance(each, ssl.SSLCertVerificationError):
            return _of_certificate(each, trust)
        if isinstance(each, ssl.SSLError):
            return _of_connection(each, trust, own)
        if type(each).__name__ == _NAME_ERROR:
            return _OTHER_NAME
    return None


def no_authorities(trust: str, path: str) -> str:
    """Return what is wrong if a setting names certificates of authorities that do not exist."""
    return f"{trust} names {path}, which does not exist; correct the path"


def _of_certificate(error: ssl.SSLCertVerificationError, trust: str) -> str:
    code = error.verify_code
    if code in _UNTRUSTED:
        return f"the authority of its certificate is not trusted; name the authority's certificate in {trust}"
    if code == _EXPIRED:
        return "its certificate, or one of its authorities, has expired; renew it on the server"
    if code == _NOT_YET:
        return "its certificate is not valid yet; check the clocks of both machines"
    if code in {_NAME, _ADDRESS}:
        return _OTHER_NAME
    return f"its certificate is refused: {error.verify_message}"


def _of_connection(error: ssl.SSLError, trust: str, own: str) -> str:
    reason = error.reason or ""
    if reason in _NO_CERTIFICATES:
        return f"the file that {trust} names has no certificates; name one in the format PEM"
    if reason in _NO_TLS:
        return "it speaks no TLS on this port; check the scheme and the port"
    if own and "CERTIFICATE_REQUIRED" in reason:
        return f"it requires a certificate of the client; name it in {own}"
    return f"TLS failed: {reason.replace('_', ' ').lower() or 'the connection broke off'}"


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and those that caused it, wherever its library keeps them."""
    waiting, seen = [error], set[int]()
    while waiting and len(seen) < _LONGEST_CHAIN:
        each = waiting.pop(0)
        if id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        kept = [each.__cause__, each.__context__, *each.args]
        with suppress(Exception):  # an attribute of a foreign class may compute something
            kept += [getattr(each, name, None) for name in ("reason", "inner_exception")]
        waiting += [inner for inner in kept if isinstance(inner, BaseException)]
