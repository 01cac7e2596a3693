"""Translate the errors of obstore into ours.

Its exceptions have no fields: the status, the answer's body and the kind of a failed connection are in their text. The
text is never quoted, because it holds the address of the request, which may be signed, and errors of credential
libraries. Only the store's code and message are taken from it.
"""

import re
from collections.abc import Mapping

from worker.storage.cloud.error_mapping import Meaning, Origin, by_code, missing_bucket
from worker.storage.errors import AccessDenied, InvalidKey, StorageError, Timeout, Unavailable, UnexpectedAnswer

_STATUS = re.compile(r"Server returned non-2xx status code: (\d{3})[^:]*: ?(.*?)(?:\n\nDebug source:|\Z)", re.DOTALL)
_CODE = re.compile(r"<Code>\s*([A-Za-z0-9.]+)\s*</Code>")
_MESSAGE = re.compile(r"<Message>\s*(.*?)\s*(?:\n|</Message>)", re.DOTALL)
_CONNECTION = re.compile(r"kind: (Connect|Request|Timeout|Interrupted|Decode|Unknown)\b")
_TLS = re.compile(r"certificate|InvalidMessage|AlertReceived|HandshakeFailure", re.IGNORECASE)

CLASSES: Mapping[str, tuple[type[StorageError], str]] = {
    "UnauthenticatedError": (AccessDenied, "there are no usable credentials; correct the store's keys"),
    "PermissionDeniedError": (AccessDenied, "the credentials do not allow it, or are wrong"),
    "InvalidPathError": (InvalidKey, "the key cannot be part of an address"),
}
"""The meaning of the classes if the text has no more. All others are answers that obstore does not understand."""


class NotUnderstood(UnexpectedAnswer):
    """obstore does not understand the answer; the SDK may."""


def translate(error: Exception, origin: Origin, what: str, codes: Mapping[str, Meaning]) -> StorageError:
    """Return our error for what obstore raised.

    Args:
        error: what it raised.
        origin: where.
        what: the bucket and key that it was about, for the message.
        codes: the meaning of the provider's codes and statuses.
    """
    text = str(error)
    if answer := _STATUS.search(text):
        return _translate_answer(answer[1], answer[2], origin, what, codes)
    where = f"{origin.store}: {what}: {origin.endpoint}"
    if failed := _CONNECTION.search(text):
        return _translate_connection(failed[1], text, where)
    kind, reason = CLASSES.get(type(error).__name__, (NotUnderstood, "the answer is not understood"))
    return kind(f"{where}: {reason} ({type(error).__name__})")


def _translate_answer(status: str, body: str, origin: Origin, what: str, codes: Mapping[str, Meaning]) -> StorageError:
    code, said = _CODE.search(body), _MESSAGE.search(body)
    if code and code[1] == "NoSuchBucket":
        return missing_bucket(origin, what.partition("/")[0])
    return by_code(
        origin,
        what,
        codes,
        code=code[1] if code else "",
        status=status,
        said=said[1] if said and "sig=" not in said[1].lower() else "",
        retry_after="",  # obstore does not tell it
    )


def _translate_connection(kind: str, text: str, where: str) -> StorageError:
    if kind == "Timeout":
        return Timeout(f"{where}: did not answer in time")
    if kind == "Connect":
        reason = "TLS failed; check its certificate" if _TLS.search(text) else "cannot be reached; check the network"
        return Unavailable(f"{where}: {reason}")
    return Unavailable(f"{where}: broke off in the middle")
