"""Read an HTTP answer strictly where `http.client` is lenient: interim answers and the framing of chunks.

It reads the sizes of chunks with `int`, which accepts `+5`, `0x5` and `5_0`, and discards the two bytes after a chunk
whatever they are. So an answer that lost bytes on the way could end early, at data that looks like the size of the last
chunk.
"""

import http.client
import re
from collections.abc import Mapping

import urllib3

from zot_artifact_client.http_final_response import FinalResponse

_CHUNK_SIZE = re.compile(rb"[0-9A-Fa-f]{1,16}")
_LINE_BYTES = 1 << 16


class StrictResponse(FinalResponse):
    """An answer whose body is complete or raises."""

    chunk_left: int | None
    trailers: http.client.HTTPMessage | None = None
    """The headers that follow the last chunk."""

    def _get_chunk_left(self) -> int | None:
        """Return how much is left of this chunk, or of the next one after its end; None after the last one."""
        if self.chunk_left == 0:
            if self.fp.read(2) != b"\r\n":
                raise http.client.IncompleteRead(b"")
            self.chunk_left = None
        return super()._get_chunk_left()  # type: ignore[misc,no-any-return]

    def _read_next_chunk_size(self) -> int:
        size = self.fp.readline(_LINE_BYTES).partition(b";")[0].strip()
        if not _CHUNK_SIZE.fullmatch(size):
            raise ValueError("no size of a chunk")  # an IncompleteRead for the caller
        return int(size, 16)

    def _read_and_discard_trailer(self) -> None:
        self.trailers = http.client.parse_headers(self.fp)


def trailers_of(response: urllib3.BaseHTTPResponse) -> Mapping[str, str]:
    """Return the trailers of an answer that was read to its end."""
    trailers = getattr(getattr(response, "_original_response", None), "trailers", None)
    return urllib3.HTTPHeaderDict(trailers.items() if trailers else ())
