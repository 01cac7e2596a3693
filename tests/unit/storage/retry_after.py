"""What stores say in Retry-After, and the seconds that it means."""

import pytest

from zot_artifact_client.retry_after import LONGEST

with_retry_after = pytest.mark.parametrize(
    ("header", "seconds"),
    [("7", 7.0), ("Wed, 21 Oct 2026 07:28:00 GMT", 0.0), ("Fri, 31 Dec 9999 23:59:59 GMT", LONGEST), (None, None)],
)
