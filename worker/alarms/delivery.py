"""Deliver digests through the channels that the settings name."""

import logging
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from worker.alarms import mail, webhook
from worker.alarms.attempts import AlarmUndelivered, backoff
from worker.alarms.message_text import text_of
from worker.catalogue import Alarms, FindingKind, Findings
from worker.settings.alarms import AlarmSettings

logger = logging.getLogger(__name__)

_FIRST_DELAY = 30.0
"""Seconds until the second attempt, see `backoff`."""
_CLAIM = timedelta(minutes=5)
_OFTEN = 2
"""Failed attempts after which a finding tells that an alarm does not arrive."""


def deliver(payload: Mapping[str, Any], channel: str, settings: AlarmSettings, *, at: datetime) -> str | None:
    """Deliver one digest, and return what the channel refused of it, None for nothing.

    Raises:
        AlarmUndelivered: the channel did not accept it.
    """
    if channel == "webhook" and settings.webhook is not None:
        webhook.post(payload, settings.webhook, at=at)
        return None
    if channel == "email" and settings.email is not None:
        return mail.send(payload, settings.email, at=at)
    if channel == "log" and settings.log:
        level = logging.ERROR if payload["opened"] or payload["escalated"] else logging.INFO
        for line in text_of(payload).splitlines():
            logger.log(level, "alarm %s: %s", payload["id"], line)
        return None
    raise AlarmUndelivered(f"the channel {channel} is not configured: see `alarms` in docs/settings.md")


def deliver_pending(
    alarms: Alarms, findings: Findings, settings: AlarmSettings, *, now: datetime
) -> tuple[dict[str, int], dict[str, str]]:
    """Deliver the digests that are due; return how many were delivered, and why others were not, by channel.

    The second of two digests of a channel waits when the first one fails. A digest is sent a second time under the same
    id if the worker dies before it has recorded that it was delivered.
    """
    delivered: dict[str, int] = {}
    errors: dict[str, str] = {}
    for digest in alarms.claim(settings.channels, now=now, until=now + _CLAIM):
        if digest.channel in errors:
            alarms.failed(digest, errors[digest.channel], next_at=now + backoff(digest.attempts, _FIRST_DELAY))
            continue
        try:
            note = deliver(digest.payload, digest.channel, settings, at=now)
        except AlarmUndelivered as error:
            errors[digest.channel] = str(error)
            alarms.failed(digest, str(error), next_at=now + backoff(digest.attempts, _FIRST_DELAY))
            logger.error("alarm %s was not delivered: %s", digest.id, errors[digest.channel])  # noqa: TRY400 - no bug
        else:
            delivered[digest.channel] = delivered.get(digest.channel, 0) + 1
            alarms.delivered(digest, now=now, note=note)
            if note:
                logger.warning("alarm %s: %s: %s", digest.id, digest.channel, note)
    _see_undelivered(alarms, findings, settings, now)
    return delivered, errors


def _see_undelivered(alarms: Alarms, findings: Findings, settings: AlarmSettings, now: datetime) -> None:
    late = {
        name: each for name, each in alarms.channels().items() if each.pending and each.attempts >= _OFTEN
        if name in settings.channels
    }  # fmt: skip
    told = [f"{each.pending} waiting since {each.since:%Y-%m-%d %H:%M} UTC: {each.error}" for each in late.values()]
    evidence = {"detail": "; ".join(told), "channels": sorted(late)} if late else None
    findings.see_store(FindingKind.ALARM_UNDELIVERED, "", evidence, now=now)
