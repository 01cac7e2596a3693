"""Read the final answer of an HTTP host, whatever interim answers come before it.

`http.client` takes every interim answer but 100 (Continue) for the final one: a host or proxy that sends 103 (Early
Hints) would have refused the request, and the next answer on the connection would be that of the request before.
"""

import http.client

_MOST_INTERIM = 32


class FinalResponse(http.client.HTTPResponse):
    """An answer that is never an interim one, and has one length at most."""

    def begin(self) -> None:
        """Read the headers. Two lengths are refused here, because urllib3 does it later and leaves the answer open."""
        super().begin()
        lengths = ", ".join(self.headers.get_all("Content-Length", ())).split(",")
        if len({each.strip().lstrip("0") for each in lengths}) > 1:
            raise http.client.HTTPException("an answer with several lengths")

    def _read_status(self) -> tuple[str, int, str]:
        """Read the status line of the final answer; 101 is final, because it ends HTTP on the connection."""
        for _ in range(_MOST_INTERIM):
            version, status, reason = super()._read_status()  # type: ignore[misc]
            if not 100 <= status < 200 or status == http.HTTPStatus.SWITCHING_PROTOCOLS:  # noqa: PLR2004 - RFC 9110
                return version, status, reason
            http.client.parse_headers(self.fp)
        raise http.client.HTTPException("more interim answers than any host sends")


class PlainConnection(http.client.HTTPConnection):
    """A connection that reads final answers."""

    response_class = FinalResponse


class SecureConnection(http.client.HTTPSConnection):
    """The same with TLS."""

    response_class = FinalResponse
