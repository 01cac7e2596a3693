"""The real servers that tests and the demo talk to, as child processes on free loopback ports."""

from tests.servers.azure import Azurite
from tests.servers.gcs import FakeGcs, GcpEmulator, StrictGcs
from tests.servers.postgres import Postgres
from tests.servers.process import Server, ServerFailed, ServerMissing
from tests.servers.rabbitmq import RabbitMQ
from tests.servers.s3 import Ministack, RcloneS3
from tests.servers.valkey import Valkey

__all__ = [
    "Azurite",
    "FakeGcs",
    "GcpEmulator",
    "Ministack",
    "Postgres",
    "RabbitMQ",
    "RcloneS3",
    "Server",
    "ServerFailed",
    "ServerMissing",
    "StrictGcs",
    "Valkey",
]
