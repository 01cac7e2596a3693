"""What a worker, beat and Flower write in JSON mode can be read by a program, line by line."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.servers.valkey import Valkey
from tests.servers.worker import Beat, Worker


class JsonWorker(Worker):
    """A worker that logs JSON, which has no line of text for `ready`."""

    def probe(self) -> None:
        if ' ready."' not in self.log:
            raise ConnectionError("it is not ready yet")


class JsonFlower(Worker):
    """Flower, which writes its log by Tornado."""

    def command(self) -> Sequence[str]:
        return (sys.executable, "-m", "celery", "-A", "worker.app", "flower", f"--port={self.port}")

    def environment(self) -> Mapping[str, str]:
        return {**super().environment(), "FLOWER_BASIC_AUTH": "a:b"}

    def probe(self) -> None:
        if "Visit me" not in self.log:
            raise ConnectionError("it is not ready yet")


def test_every_line_of_a_worker_beat_and_flower_is_json(tmp_path: Path) -> None:
    """From the start to an orderly end no banner and no notice of Celery is anything but a line of JSON."""
    (tmp_path / "valkey").mkdir()
    with (
        Valkey(tmp_path / "valkey") as broker,
        JsonWorker(tmp_path / "worker", broker.url, concurrency=1, fork=False, log__format="json") as worker,
        Beat(tmp_path / "beat", broker.url, fork=False, log__format="json") as beat,
        JsonFlower(tmp_path / "flower", broker.url, fork=False, log__format="json") as flower,
    ):
        flower.stop()
        beat.stop()
        worker.stop()
        for log in (worker.log, beat.log, flower.log):
            lines = [json.loads(line) for line in log.splitlines()]
            assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
        assert '"worker: Warm shutdown (MainProcess)"' in worker.log
