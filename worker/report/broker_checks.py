"""Ask the broker, the result backend, the workers of its queues and beat; read the open circuit breakers."""

from collections.abc import Iterator
from contextlib import suppress

import redis
from celery import Celery
from kombu.connection import Connection

from worker.beat_scheduler import last_tick
from worker.counted import counted
from worker.intake.rejected import describe_counts, open_rejected
from worker.jobs.waiting_messages import waiting_messages
from worker.limits.check_pauses import paused_queues
from worker.limits.circuit_breaker import CircuitBreaker, OpenBreaker
from worker.limits.expiring_counters import Counters
from worker.limits.shared_redis import SharedRedis, redis_of_results
from worker.readable import moment
from worker.report.check import FULL_BROKER, RESTART_UP, Check
from worker.settings.model import NoBroker, Settings
from worker.storage.durations_and_sizes import duration_text
from zot_artifact_client.broker_urls import parse_url, redis_client
from zot_artifact_client.connection import (
    broker_fault,
    first_line,
    is_rabbitmq,
    is_redis,
    passing_fault,
    takes_no_writes,
    what_it_does,
    without_credentials,
)
from zot_artifact_client.contract import Queue
from zot_artifact_client.errors import BrokerUnavailable

_BEAT_WITHIN = 90.0
"""Seconds since its last tick after which beat counts as stopped; it ticks every few seconds."""
_NO_LIST = "zot-artifacts:no-list"


def ask_broker(settings: Settings, url: str) -> Iterator[Check]:
    """Check the broker with this URL, the result backend, the workers and beat."""
    name = without_credentials(url)
    try:
        if is_redis(url):
            yield _redis(url, name)
        elif is_rabbitmq(url):
            yield _rabbitmq(url, name)
        if settings.results is not None and is_redis(settings.results_url):
            yield _result_backend(settings.results_url)
    except redis.RedisError as error:
        yield _unreachable("broker", url, error, "ZOT_BROKER" if settings.broker else "")
        return
    yield _queues(url)
    yield from _rejected(settings)
    yield _workers(settings, url, _paused_queues(settings))
    yield beat_check(settings)


def _redis(url: str, name: str) -> Check:
    with redis_client(url, socket_timeout=3, socket_connect_timeout=3) as client:
        _check_writes(client)
        try:
            policy = client.config_get("maxmemory-policy").get("maxmemory-policy")
        except redis.ResponseError:  # hosted servers forbid the command
            return Check("broker", "good", f"{name} answers; its maxmemory-policy cannot be read")
    if policy == "noeviction":
        return Check("broker", "good", f"{name} answers; maxmemory-policy is noeviction")
    return Check("broker", "bad", f"{name}: maxmemory-policy is {policy}", "set it to noeviction: else jobs are lost")


def _check_writes(client: redis.Redis) -> None:
    """Raise redis.RedisError unless the server answers and takes writes; PING alone is answered without any memory."""
    client.ping()
    with suppress(redis.exceptions.NoPermissionError):  # a user may have other rights
        client.lpushx(_NO_LIST, "")  # appends to a list that is there, and writes nothing else


def _rabbitmq(url: str, name: str) -> Check:
    try:
        server = parse_url(url, "broker")
        with Connection(server.text, ssl=server.tls, connect_timeout=3) as connection:
            version = connection.connection.server_properties.get("version", "of an unknown version")
    except Exception as error:  # noqa: BLE001 - each transport raises other errors
        return _unreachable("broker", url, error, "ZOT_BROKER")
    return Check("broker", "good", f"{name}: RabbitMQ {version} answers; its consumer_timeout cannot be read")


def _result_backend(url: str) -> Check:
    name = without_credentials(url)
    try:
        with redis_client(url, socket_timeout=3, socket_connect_timeout=3) as client:
            _check_writes(client)
    except redis.RedisError as error:
        return _unreachable("result backend", url, error, "ZOT_RESULTS")
    return Check("result backend", "good", f"{name} answers")


def _unreachable(title: str, url: str, error: Exception, setting: str) -> Check:
    """Return the check of a server that does not answer; `setting` is empty for the broker of `zot-artifacts up`."""
    name = without_credentials(url)
    if passing := passing_fault(error):  # it names its own way out
        return Check(title, "unknown", f"{name}: {passing}")
    if takes_no_writes(error):
        return Check(title, "unknown", f"{name} {what_it_does(error, url)}", FULL_BROKER)
    if fault := broker_fault(error, url):
        has_way_out = "; " in fault or not setting  # such as an expired certificate, with a right setting
        return Check(title, "unknown", f"{name}: {fault}", None if has_way_out else f"correct {setting}")
    way_out = f"start it, or correct {setting}" if setting else RESTART_UP
    return Check(title, "unknown", f"{name}: {first_line(error)}", way_out)


def _queues(url: str) -> Check:
    """Tell how many messages no worker has taken: their jobs are not in the ledger yet."""
    try:
        waiting = waiting_messages(url, [queue.value for queue in Queue])
    except Exception as error:  # noqa: BLE001 - each transport raises other errors
        return Check("queues", "unknown", f"the broker {what_it_does(error, url)}")
    told = [
        f"{counted(each.count, 'message')} in {name}"
        + (f", the oldest job of a client since {moment(each.since)}" if each.since else "")
        for name, each in waiting.items()
        if each.count
    ]
    return Check(
        "queues", "good", f"no worker has taken {'; '.join(told)}" if told else "no message waits for a worker"
    )


def _rejected(settings: Settings) -> Iterator[Check]:
    try:
        with open_rejected(settings) as refused:
            counts = refused.counts() if refused else {}
    except BrokerUnavailable as error:
        yield Check("messages", "unknown", str(error))
        return
    if counts:
        yield Check("messages", "good", describe_counts(counts), "list them with `zot-artifacts jobs --rejected`")


def _paused_queues(settings: Settings) -> set[str]:
    """Return the queues from which workers take nothing because an operator paused them."""
    try:
        client = redis_of_results(settings.results_url)
        paused = paused_queues(client) if client is not None else None
        return (paused or set()) & {queue.value for queue in Queue}
    except (NoBroker, redis.RedisError):
        return set()


def _start(settings: Settings) -> str:
    return "start `zot-artifacts up`" if settings.broker else RESTART_UP


def _workers(settings: Settings, url: str, paused: set[str]) -> Check:
    """Check that every queue that is not paused has a worker: jobs of a queue that is not served wait for ever."""
    server = parse_url(url, "broker")
    app = Celery("zot-artifacts-doctor", set_as_current=False)
    app.conf.update(server.broker_settings)
    try:
        answers = app.control.inspect(timeout=2).active_queues() or {}
    except Exception as error:  # noqa: BLE001 - each transport raises other errors
        return Check("workers", "unknown", f"the broker {what_it_does(error, url)}")
    finally:
        app.close()
    start = f"{_start(settings)}, or start `celery -A worker.app worker"
    if not answers:
        return Check("workers", "bad", "none answers", f"{start}`")
    served = {queue["name"] for queues in answers.values() for queue in queues or ()}
    missing = [queue.value for queue in Queue if queue.value not in served | paused]
    detail = f"{len(answers)} {'answers' if len(answers) == 1 else 'answer'}: {', '.join(sorted(answers))}"
    if missing:
        return Check(
            "workers", "bad", f"{detail}; none serves {', '.join(missing)}", f"{start} --queues {','.join(missing)}`"
        )
    left_out = f" but the paused {', '.join(sorted(paused))}" if paused else ""
    return Check("workers", "good", f"{detail}; every queue{left_out} is served")


def beat_check(settings: Settings) -> Check:
    """Check that beat ticks: without it no copy is verified again, and no lost job is recovered."""
    way_out = f"{_start(settings)}, or start one `celery -A worker.app beat`"
    try:
        client = redis_of_results(settings.results_url)
        passed = None if client is None else last_tick(client)
    except NoBroker as error:
        return Check("beat", "unknown", str(error))
    except redis.RedisError as error:
        return Check("beat", "unknown", f"the result backend {what_it_does(error, settings.results_url)}")
    if passed is None:
        return Check("beat", "bad", "no tick of the last hour is recorded", way_out)
    if passed > _BEAT_WITHIN:
        return Check("beat", "bad", f"its last tick was {duration_text(passed)} ago", way_out)
    return Check("beat", "good", f"it ticked {duration_text(passed)} ago")


def read_breakers(settings: Settings, url: str) -> dict[str, OpenBreaker]:
    """Return the circuit breakers that are open or half-open, by store; none while their Redis does not answer."""
    try:
        client = redis_of_results(url)
        if client is None or not client.ping():
            return {}
    except redis.RedisError:
        return {}
    counters = Counters(SharedRedis(lambda: client))
    breakers = {name: CircuitBreaker(name, counters, settings.breaker) for name in settings.stores}
    return {name: found for name, breaker in breakers.items() if (found := breaker.opened())}
