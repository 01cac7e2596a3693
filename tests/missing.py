"""What a test does without a program that the locks install."""

import os
from typing import NoReturn

import pytest


def skip_or_fail(reason: str) -> NoReturn:
    """Skip the test on a developer's machine; fail it in CI, where everything of the locks has to be installed."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
