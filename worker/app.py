"""The Celery application: `celery -A worker.app worker`, `… beat`, `… flower`.

A worker that gets SIGTERM takes no further jobs, lets those at work end for `jobs.grace`, and then hands them back at
their next piece: another worker, or this one after its restart, continues them.
"""

import os
from typing import Any

from celery import Celery, signals

from worker import context
from worker.beat import LONGEST_SLEEP
from worker.embedded.parent_death import die_with_parent
from worker.jobs import shutdown as draining
from worker.jobs.result_backend import use_atomic_result_backend
from worker.schedule import beat_schedule
from worker.settings import Settings, SettingsError, load_settings
from zot_artifact_client.contract import SWEEP_PROBE, TASKS
from zot_artifact_client.contract.queues import queues
from zot_artifact_client.urls import ServerUrl, parse_result_url, parse_url

TASK_MODULES = (
    "tasks.upload",
    "tasks.replicate",
    "tasks.verify",
    "tasks.delete",
    "tasks.adopt",
    "tasks.batch",
    "tasks.record_rejected",
    "tasks.sweeps.verify",
    "tasks.sweeps.replicate",
    "tasks.sweeps.cleanup",
    "tasks.sweeps.probe",
    "tasks.sweeps.recover",
)
"""Named as strings: the arrows run from the tasks to the worker, never back."""


def make_app(settings: Settings) -> Celery:
    """Return the application for these settings. Every option that is not Celery's default has its reason here."""
    for variable in ("CELERY_BROKER_URL", "CELERY_BROKER_READ_URL", "CELERY_BROKER_WRITE_URL", "CELERY_RESULT_BACKEND"):
        os.environ.pop(variable, None)  # Celery lets them win over what it is told here
    broker, results = parse_url(settings.broker_url, "broker"), parse_result_url(settings.results_url, "results")
    app = Celery(
        "zot-artifacts",
        broker=broker.text,
        backend=results.text,
        include=TASK_MODULES,
        amqp="worker.intake.message_filter:AMQP",  # no message comes in unseen: a malformed one would end the worker
    )
    use_atomic_result_backend(app)  # results: twice in every job
    limit = settings.jobs.time_limit.total_seconds()
    visibility = settings.visibility_timeout.total_seconds()
    app.conf.update(
        # Messages
        task_serializer="json",
        result_serializer="json",
        accept_content=["json"],  # anything else could carry code
        task_queues=queues(unrouted=settings.serves_default_queue),
        task_default_queue=TASKS["artifact.verify.v1"].queue.value,
        task_routes={name: {"queue": spec.queue.value} for name, spec in TASKS.items()},
        worker_consumer="worker.intake.message_filter:Consumer",  # the rest of the message filter
        task_create_missing_queues=False,  # a misspelt queue is an error, not a queue without a worker
        # Delivery: a message is gone only when its job has ended
        task_acks_late=True,
        task_reject_on_worker_lost=False,  # alone it loops for ever on a job that kills its worker
        task_retry_on_worker_lost=True,  # a killed child's job gets another try, after the task's default_retry_delay
        worker_prefetch_multiplier=1,  # a small job must not wait behind a large one that another worker could take
        broker_transport_options=_transport_options(settings, broker),
        broker_channel_error_retry=broker.is_rabbitmq,  # over a long job it closes the channel: no end
        visibility_timeout=visibility,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,  # a worker outlives any outage of its broker
        # Limits
        task_soft_time_limit=limit,
        task_time_limit=limit + 60,
        # Results, for the clients; the ledger is the record
        result_expires=settings.jobs.result_expires,
        result_extended=True,  # name and arguments beside the result, for Flower and other readers
        result_backend_transport_options={
            **results.transport_options,
            "visibility_timeout": visibility,
            "retry_policy": {"max_retries": 3, "interval_start": 0, "interval_step": 0.2, "interval_max": 0.5},
        },
        redis_socket_timeout=10,
        redis_socket_connect_timeout=5,
        redis_socket_keepalive=not results.is_socket,
        redis_backend_health_check_interval=10,
        # What Flower sees
        task_track_started=True,
        task_send_sent_event=True,
        worker_send_task_events=True,
        # Beat
        beat_schedule=beat_schedule(settings),
        beat_scheduler="worker.beat:Scheduler",  # records its ticks, which doctor reads
        beat_max_loop_interval=LONGEST_SLEEP,
        beat_schedule_filename=str(settings.home / "run" / "beat-schedule"),
        timezone="UTC",
        worker_hijack_root_logger=True,
    )
    app.steps["consumer"].add("worker.jobs.remote_control:Control")  # cancelling and pausing, from outside
    return app


def _transport_options(settings: Settings, broker: ServerUrl) -> dict[str, object]:
    if broker.is_redis:
        return {
            **broker.transport_options,
            # Longer than any job or wait: else Redis hands out a running job again.
            "visibility_timeout": settings.visibility_timeout.total_seconds(),
            "socket_timeout": 10,  # the default waits for ever on a connection that has silently died
            "socket_connect_timeout": 5,
            "socket_keepalive": True,
            "health_check_interval": 10,  # a worker whose connection has silently died is deaf for twice as long
            "unacked_restore_throttle": 1,  # look for abandoned messages at every interval, not at every tenth
            "queue_order_strategy": "priority",  # in the order of task_queues; in turns, every user waits for a sweep
        }
    if broker.is_rabbitmq:
        return {
            "confirm_publish": True,  # the default takes a message as sent that RabbitMQ has lost
            "read_timeout": 20,  # and then waits for ever for its confirmation
            "write_timeout": 20,
        }
    return {}


@signals.worker_process_init.connect
def _die_with_the_worker(**_: Any) -> None:
    """Let no child outlive a worker that was killed: its job would continue without a worker."""
    die_with_parent()


@signals.worker_process_init.connect
def _outwait_the_result_backend(**_: Any) -> None:
    """Let a child wait for a result backend that is away: what Celery cannot store, it tells the client as failed.

    The children alone: the parent has to serve them all, and a user waits in front of a command line.
    """
    app.backend.always_retry = True


@signals.worker_shutting_down.connect
def _drain(**_: Any) -> None:
    draining.begin()


@signals.worker_ready.connect
def _probe_stores(sender: Any, **_: Any) -> None:
    """Let a child probe the stores: the parent must hold no connection when it forks."""
    if SWEEP_PROBE.queue in sender.app.amqp.queues.consume_from:
        sender.app.send_task(SWEEP_PROBE.name, queue=SWEEP_PROBE.queue.value, expires=60)


def _configured_app() -> Celery:
    try:
        settings = load_settings()
        settings.prepare()
        context.configure(settings)
        return make_app(settings)
    except SettingsError as error:
        raise SystemExit(f"zot-artifacts: {error}") from None


app = _configured_app()
