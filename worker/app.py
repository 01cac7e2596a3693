"""The Celery application: `celery -A worker.app worker`, `… beat`, `… flower`.

A worker that gets SIGTERM takes no further jobs, lets the running ones go on for `jobs.grace`, and then requeues them
at their next chunk: another worker, or this one after its restart, resumes them.
"""

import gc
import logging
import os
import sys
import threading
from pathlib import Path
from typing import Any

import redis
from billiard import current_process
from celery import Celery, signals

from worker import clock, context, shutdown_flag, tracing
from worker.beat_scheduler import LONGEST_SLEEP
from worker.bounded_exit import end_after, end_within, end_within_after_signals
from worker.catalogue import Catalogue, CatalogueError, NewerCatalogue, checkpoint_write_ahead_log
from worker.embedded.parent_death import die_with_parent
from worker.flower.require_authentication import check_authentication, is_flower
from worker.flower.setup import set_up
from worker.jobs.redis_keys_of_wrong_type import move_wrong_types
from worker.jobs.result_backend import use_atomic_result_backend
from worker.limits.check_pauses import mirror_queues
from worker.limits.shared_redis import result_backend
from worker.log_lines import make_safe, quieten_libraries
from worker.metrics.totals_sender import Sender
from worker.schedule import beat_schedule
from worker.settings import Settings, SettingsError, load_settings
from zot_artifact_client.broker_urls import ServerUrl, parse_result_url, parse_url
from zot_artifact_client.connection import CONNECT_TIMEOUT, SOCKET_TIMEOUT
from zot_artifact_client.contract import QUERIES, SWEEP_PROBE, TASKS
from zot_artifact_client.contract.queues import queues
from zot_artifact_client.text_escaping import bounded

logger = logging.getLogger(__name__)

_REQUEUED_WITHIN = 20.0
"""Seconds, beyond `jobs.grace`, within which a worker that works notices a signal, and its children requeue jobs."""
TASK_MODULES = (
    "tasks.upload",
    "tasks.replicate",
    "tasks.verify",
    "tasks.check_evidence",
    "tasks.delete",
    "tasks.adopt",
    "tasks.batch",
    "tasks.page",
    "tasks.queries",
    "tasks.record_rejected",
    "tasks.sweeps.alarms",
    "tasks.sweeps.webhooks",
    "tasks.sweeps.backup",
    "tasks.sweeps.verify",
    "tasks.sweeps.replicate",
    "tasks.sweeps.report",
    "tasks.sweeps.repair",
    "tasks.sweeps.damage_canaries",
    "tasks.sweeps.cleanup",
    "tasks.sweeps.check_evidence",
    "tasks.sweeps.probe",
    "tasks.sweeps.purge",
    "tasks.sweeps.reconcile",
    "tasks.sweeps.recover",
)
"""Named as strings, because the worker imports no task."""


def make_app(settings: Settings) -> Celery:
    """Return the application for these settings; each option that is not Celery's default has its reason beside it."""
    for variable in ("CELERY_BROKER_URL", "CELERY_BROKER_READ_URL", "CELERY_BROKER_WRITE_URL", "CELERY_RESULT_BACKEND"):
        os.environ.pop(variable, None)  # Celery would prefer them to the options below
    broker, results = parse_url(settings.broker_url, "broker"), parse_result_url(settings.results_url, "results")
    app = Celery(
        "zot-artifacts",
        backend=results.text,
        include=TASK_MODULES,
        amqp="worker.intake.message_filter:AMQP",  # filters every message: a malformed one would end the worker
    )
    use_atomic_result_backend(app)
    app.Task.Request = "worker.intake.celery_request:OneMessageRequest"  # by name: only a worker imports it
    limit = settings.jobs.time_limit.total_seconds()
    visibility = settings.visibility_timeout.total_seconds()
    app.conf.update(
        **broker.broker_settings | {"broker_transport_options": _transport_options(settings, broker)},
        # Messages
        task_serializer="json",
        result_serializer="json",
        accept_content=["json"],  # anything else could carry code
        task_queues=queues(unrouted=settings.serves_default_queue),
        task_default_queue=TASKS["artifact.verify.v1"].queue.value,
        task_routes={name: {"queue": spec.queue.value} for name, spec in (TASKS | QUERIES).items()},
        worker_consumer="worker.intake.message_filter:Consumer",  # filters what other brokers deliver
        task_create_missing_queues=False,  # a misspelt queue is an error, not a queue without a consumer
        # Delivery: a message is gone only when its job has ended
        task_acks_late=True,
        task_reject_on_worker_lost=False,  # alone it loops for ever on a job that kills its worker
        task_retry_on_worker_lost=True,  # a killed child's job gets another try, after the task's default_retry_delay
        # A small job must not wait behind a large one that another worker could take; see `MessagesAhead`.
        worker_prefetch_multiplier=1,
        # RabbitMQ closes the channel over a long job, and a full Redis refuses to start one: neither ends the worker.
        broker_channel_error_retry=broker.is_rabbitmq or broker.is_redis,
        worker_eta_task_limit=10_000,  # of other brokers than Redis, whose messages wait in the worker
        visibility_timeout=visibility,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,  # a worker outlives any outage of its broker
        # Limits
        task_soft_time_limit=limit,
        task_time_limit=limit + 60,
        # Results, for the clients; the ledger is the record
        result_expires=settings.jobs.result_expires,
        result_extended=True,  # the name of the task beside the result; the arguments are left out
        result_backend_transport_options={
            **results.transport_options,
            "visibility_timeout": visibility,
            "retry_policy": {"max_retries": 3, "interval_start": 0, "interval_step": 0.2, "interval_max": 0.5},
        },
        redis_socket_timeout=SOCKET_TIMEOUT,  # of what reports progress; an end is stored again until it is there
        redis_socket_connect_timeout=CONNECT_TIMEOUT,
        redis_socket_keepalive=not results.is_socket,
        redis_backend_health_check_interval=10,
        # What Flower sees
        task_track_started=False,  # the first heartbeat stores progress instead, with the fencing token
        worker_send_task_events=False,  # Flower turns them on while it runs; unseen, they cost a third of a job
        # Beat
        beat_schedule=beat_schedule(settings),
        beat_scheduler="worker.beat_scheduler:Scheduler",  # records its ticks, which doctor reads
        beat_max_loop_interval=LONGEST_SLEEP,
        beat_schedule_filename=str(settings.run_dir / "beat-schedule"),
        timezone="UTC",
        worker_hijack_root_logger=True,
    )
    app.steps["consumer"].add("worker.intake.catalogue_of_broker:CheckOwner")
    app.steps["consumer"].add("worker.jobs.queue_pauses_and_revoke:PausedQueues")
    app.steps["consumer"].add("worker.jobs.queue_pauses_and_revoke:CancelRequests")
    app.steps["consumer"].add("worker.intake.messages_ahead:MessagesAhead")
    app.steps["consumer"].add("worker.intake.delayed:ReleaseDelayed")
    app.steps["consumer"].add("worker.intake.deliveries_kept_on_disk:ReturnUnrecorded")
    return app


def _transport_options(settings: Settings, broker: ServerUrl) -> dict[str, object]:
    if broker.is_redis:
        return {
            # Longer than any job or wait: otherwise Redis delivers a running job again.
            "visibility_timeout": settings.visibility_timeout.total_seconds(),
            "socket_timeout": 10,  # the default waits for ever on a connection that has silently died
            "socket_connect_timeout": 5,
            "socket_keepalive": True,
            "health_check_interval": 10,  # a worker notices a connection that has silently died after twice as long
            "unacked_restore_throttle": 1,  # look for abandoned messages at every interval, not at every tenth
            "queue_order_strategy": "priority",  # in the order of task_queues; else users wait for sweeps
            **broker.transport_options,  # of its URL
        }
    if broker.is_rabbitmq:
        return {
            "confirm_publish": True,  # by default, a message that RabbitMQ lost counts as sent
            "read_timeout": 20,  # by default, the wait for a confirmation has no end
            "write_timeout": 20,
        }
    return {}


@signals.after_setup_logger.connect
@signals.after_setup_task_logger.connect
def _set_up_log(logger: logging.Logger, **_: Any) -> None:
    make_safe(logger, as_json=context.configured().log.format == "json")
    quieten_libraries(logging.getLogger().level)


@signals.beat_embedded_init.connect
@signals.worker_process_init.connect
def _die_with_the_worker(**_: Any) -> None:
    """End the children of a worker that was killed, and its beat (`--beat`): they would go on without the worker.

    With `--pool solo` the worker is its own child, and outlives the shell or the supervisor that has started it.
    """
    if current_process().name != "MainProcess":
        die_with_parent()


@signals.worker_process_init.connect
def _leave_out_what_the_worker_made(**_: Any) -> None:
    """Exclude what the worker made before the fork from the child's garbage collection.

    Python collects the oldest garbage only once it is a quarter of what it has found alive before.
    """
    gc.freeze()
    gc.collect()  # finds nothing, and sets that number to 0


@signals.task_postrun.connect
def _drop_the_frames_of_a_failure(retval: Any, **_: Any) -> None:
    """Break the cycles of an error, its causes and the frames that they passed; Celery's own frame is one of them.

    Celery's frame holds a copy of the traceback, about 400 KB for each failed or retried attempt, which only the
    garbage collector would free.
    """
    seen = set[int]()
    errors = [retval]
    while errors:
        error = errors.pop()
        if isinstance(error, BaseException) and id(error) not in seen:
            seen.add(id(error))
            errors += [error.__cause__, error.__context__]
            error.__traceback__ = None


@signals.worker_process_init.connect
def _outwait_the_result_backend(**_: Any) -> None:
    """Make a child wait for a result backend that is unavailable: else Celery reports the job as failed.

    Only the children wait: the parent serves all of them, and a command line must return.
    """
    app.backend.always_retry = True


@signals.worker_process_init.connect
def _send_metrics(**_: Any) -> None:
    """Add what this child counts to the totals of the fleet."""
    sender = Sender(app)
    sender.start()
    tracing.start()

    def end(**_: Any) -> None:
        sender.stop()
        tracing.stop()

    signals.worker_process_shutdown.connect(end, weak=False)


@signals.worker_shutting_down.connect
def _drain(**_: Any) -> None:
    grace = context.configured().jobs.grace
    shutdown_flag.announce(grace)
    signals.worker_shutdown.connect(_end_in_time)
    end_after(grace.total_seconds() + _REQUEUED_WITHIN, _what_does_not_end)


def _what_does_not_end() -> str:
    """Return why the worker has not ended: Celery waits without a limit for a silent broker, and for its children.

    A child waits for a catalogue that is silent, which no signal ends.
    """
    silent = "a child waits for its job or the catalogue" if _is_ending() else "the broker does not answer"
    return f"{silent}; other workers get the jobs when their leases end"


def _is_ending() -> bool:
    """Return whether Celery's main loop has noticed that the worker is to end."""
    from celery.worker import WorkController

    frame = sys._current_frames().get(threading.main_thread().ident or 0)  # noqa: SLF001 - documented for this
    while frame is not None:
        if frame.f_code in {WorkController.stop.__code__, WorkController.terminate.__code__}:
            return True
        frame = frame.f_back
    return False


def _end_in_time(sender: Any, **_: Any) -> None:
    """End a worker that has drained, although a thread of it or of a library has not ended.

    Its children have ended, without closing their connections to the catalogue.
    """
    end_within(status=sender.exitcode or 0)
    checkpoint_write_ahead_log(context.configured().catalogue_url)


@signals.beat_init.connect
def _end_beat_in_time(**_: Any) -> None:
    end_within_after_signals()


@signals.worker_init.connect
def _mirror_pauses(**_: Any) -> None:
    """Restore the paused queues in Redis before the worker consumes; it may have lost them.

    The catalogue is closed again before the worker forks. A worker that is older than the catalogue ends, and so does
    one whose broker belongs to another catalogue.
    """
    # Loads Celery's worker, which a command does not need.
    from worker.intake.catalogue_of_broker import CheckOwner, OtherCatalogue, check_owner

    settings = context.configured()
    try:
        catalogue = Catalogue(settings.catalogue_url)
        try:
            pauses = catalogue.pauses.all()
        finally:
            catalogue.close()
        CheckOwner.expected = (settings, catalogue.identity)
        check_owner(settings, catalogue.identity)
        client = result_backend(app)
        if client is not None:
            mirror_queues(client, pauses)
            client.close()
    except (NewerCatalogue, OtherCatalogue) as error:
        raise SystemExit(str(error)) from None
    except (CatalogueError, redis.RedisError, OSError) as error:
        CheckOwner.is_late = CheckOwner.expected is None
        logger.warning("paused queues are not copied to Redis for now: %s", bounded(error))


@signals.worker_init.connect
def _rename_keys_of_another_type(**_: Any) -> None:
    """Have the worker rename keys of another type when it cannot connect: no job could do that."""
    from worker.intake.message_filter import Consumer  # loads Celery's worker, which a command does not need

    Consumer.on_wrong_type = staticmethod(move_wrong_types)


@signals.worker_ready.connect
def _probe_stores(sender: Any, **_: Any) -> None:
    """Probe the stores in a child, unless the settings disable probes: the parent must hold no connection at a fork."""
    if context.configured().sweep.probe.enabled and SWEEP_PROBE.queue in sender.app.amqp.queues.consume_from:
        sender.app.send_task(SWEEP_PROBE.name, queue=SWEEP_PROBE.queue.value, expires=clock.SKEW.total_seconds())


def _configured_app() -> Celery:
    if is_flower(sys.argv[1:]):
        check_authentication(sys.argv[1:], os.environ, Path.cwd())
    try:
        settings = load_settings()
        settings.prepare()
        context.configure(settings)
        made = make_app(settings)
    except SettingsError as error:
        raise SystemExit(f"zot-artifacts: {bounded('; '.join(str(error).splitlines()), 2000)}") from None
    if is_flower(sys.argv[1:]):
        set_up(made, settings)
        logging.basicConfig(format="[%(asctime)s: %(levelname)s] %(message)s")
        make_safe(logging.getLogger(), as_json=settings.log.format == "json")
    if settings.log.format == "json":
        from worker.celery_output_as_json import print_only_json  # loads Celery's worker, which a command does not need

        print_only_json(made)
    return made


app = _configured_app()
