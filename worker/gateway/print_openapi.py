"""Print the OpenAPI document: `python -m worker.gateway.print_openapi > docs/openapi.json`."""

import json
import sys

from worker.gateway.app import openapi


def text() -> str:
    """Return the document as it is checked in."""
    return json.dumps(openapi(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.stdout.write(text())
