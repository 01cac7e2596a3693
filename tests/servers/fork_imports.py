"""Import what the forks of the fork server use: it takes most of the processor time of the start of a worker."""

# ruff: noqa: F401 - nothing among it reads a setting when it is imported

import importlib
import pkgutil

import alembic.runtime.migration
import boto3.session
import botocore.handlers
import botocore.httpsession
import botocore.signers
import celery.__main__
import celery.app.task
import celery.apps.beat
import celery.apps.worker
import celery.backends.redis
import celery.bin.celery
import celery.concurrency.prefork
import fastapi
import kombu.transport.redis
import psycopg
import pydantic_settings
import redis
import rich.progress
import rich.table
import sqlalchemy.dialects.sqlite
import uvicorn
import yaml

import tasks
import worker.artifacts.sources
import worker.beat_scheduler
import worker.catalogue
import worker.cli
import worker.context
import worker.gateway.server
import worker.intake.message_filter
import worker.jobs.queue_pauses_and_revoke
import worker.metrics.totals_sender
import worker.schedule
import worker.settings
import worker.storage.azure.driver
import worker.storage.filesystem.driver
import worker.storage.gcs.driver
import worker.storage.s3.driver
import zot_artifact_client
from tests.servers.new_tables import make_new_tables_at_once
from worker.storage.config import S3Config
from worker.storage.s3.providers import make_client


def prepare_forks() -> None:
    """Import the tasks, make the tables of a new catalogue, and let boto3 load its description of the S3 API."""
    for found in pkgutil.walk_packages(tasks.__path__, "tasks."):
        importlib.import_module(found.name)
    make_new_tables_at_once()
    keys = {"access_key_id": "none", "secret_access_key": "none"}
    config = S3Config.model_validate({"bucket": "none", "endpoint": "http://127.0.0.1", **keys})
    make_client("none", config).close()
