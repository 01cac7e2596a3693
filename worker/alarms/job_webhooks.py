"""Deliver the ends of jobs to the webhooks that their requests name."""

import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta

from worker import clock
from worker.alarms import webhook
from worker.alarms.attempts import AlarmUndelivered, backoff
from worker.catalogue import JobWebhooks, PendingWebhook
from worker.settings.alarms import JobReceiverSettings, JobWebhookSettings, WebhookSettings

logger = logging.getLogger(__name__)

_FIRST_DELAY = 10.0
"""Seconds until the second attempt, see `backoff`."""
_CLAIM = timedelta(minutes=20)
"""Longer than 100 answers take; a worker that is killed meanwhile delays them by this time."""
_PAGES = 20
_TOGETHER = 8
"""Receivers that are asked at a time, so that a slow one delays no other."""
_TURN = timedelta(seconds=5)
"""After which a slow receiver gets no further end in this round: each round holds a process of an interactive queue."""


def deliver_webhooks(
    webhooks: JobWebhooks, receivers: Mapping[str, JobReceiverSettings], settings: JobWebhookSettings
) -> tuple[dict[str, int], dict[str, str]]:
    """Deliver the ends of jobs that are due; return how many were delivered, and why others were not, by receiver.

    A receiver that fails or is slow is not asked again in this round. Each end has its id at every attempt. It is sent
    a second time if the worker dies before it has recorded the answer.
    """
    delivered: dict[str, int] = {}
    errors: dict[str, str] = {}
    left = set(receivers)
    with ThreadPoolExecutor(_TOGETHER, thread_name_prefix="webhook") as pool:
        for _ in range(_PAGES):
            now = clock.now()
            if not (claimed := webhooks.claim(sorted(left), now=now, until=now + _CLAIM)):
                break
            by_receiver: dict[str, list[PendingWebhook]] = {}
            for each in claimed:
                if receivers[each.receiver].takes(each.bucket, each.start):
                    by_receiver.setdefault(each.receiver, []).append(each)
                else:  # its job was refused because of that, and names a key that the receiver must not see
                    webhooks.withdraw(each)
            done = {
                name: pool.submit(_deliver, webhooks, waiting, receivers[name], settings)
                for name, waiting in by_receiver.items()
            }
            for name, future in done.items():
                count, error = future.result()
                if count:
                    delivered[name] = delivered.get(name, 0) + count
                if count < len(by_receiver[name]):
                    left.discard(name)
                if error is not None:
                    errors[name] = error
    return delivered, errors


def _deliver(
    webhooks: JobWebhooks, waiting: list[PendingWebhook], receiver: WebhookSettings, settings: JobWebhookSettings
) -> tuple[int, str | None]:
    """Deliver to one receiver. After an attempt that fails, or its turn, the others wait for the next round."""
    begun = clock.now()
    for count, each in enumerate(waiting):
        now = clock.now()
        if count and now - begun >= _TURN:
            _give_back(webhooks, waiting[count:], now)
            return count, None
        try:
            webhook.post(each.payload, receiver, at=now, setting=f"webhooks.{each.receiver}")
        except AlarmUndelivered as error:
            is_over = now - each.ended_at >= settings.give_up
            next_at = None if is_over else now + backoff(each.attempts, _FIRST_DELAY)
            webhooks.failed(each, str(error), now=now, next_at=next_at)
            way = "it is not tried again" if next_at is None else f"the next attempt is at {next_at:%H:%M:%S} UTC"
            logger.warning(
                "webhook %s: the end of job %s was not delivered, %s: %s", each.receiver, each.job, way, error
            )
            _give_back(webhooks, waiting[count + 1 :], now)
            return count, str(error)
        webhooks.delivered(each, now=now)
    return len(waiting), None


def _give_back(webhooks: JobWebhooks, untried: list[PendingWebhook], now: datetime) -> None:
    for each in untried:
        webhooks.wait(each, next_at=now + timedelta(seconds=_FIRST_DELAY))
