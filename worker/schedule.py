"""What beat starts by the clock, made from the settings."""

from typing import Any

from worker.settings import Settings
from zot_artifact_client.contract import SWEEP_VERIFY


def beat_schedule(settings: Settings) -> dict[str, dict[str, Any]]:
    """Return Celery's schedule. A sweep that could not start before the next one is due is dropped, not piled up."""
    sweep = settings.sweep.verify
    if not sweep.enabled:
        return {}
    every = sweep.every.total_seconds()
    options = {"queue": SWEEP_VERIFY.queue.value, "expires": every}
    return {"verify": {"task": SWEEP_VERIFY.name, "schedule": sweep.every, "options": options}}
