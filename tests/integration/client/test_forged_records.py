"""Both clients outlive records of jobs that no worker has stored: another program may write to the same Redis."""

import asyncio
import json
import threading
from uuid import uuid4

import pytest
import redis

from tests.waiting import WITHIN
from zot_artifact_client import ArtifactClient, AsyncArtifactClient, JobState, WaitTimeout

KEY = "celery-task-meta-"
END: dict[str, object] = {"status": "SUCCESS", "result": {"answer": 1}, "traceback": None, "children": []}
FORGED = {
    "no JSON": b"garbage",
    "no UTF-8": b"\xff\xfe",
    "no object": b"[]",
    "too deep": b"[" * 100_000,
    "no state": b'{"result": 1}',
    "a state that is a list": b'{"status": ["SUCCESS"], "result": {}}',
    "no exception": b'{"status": "FAILURE", "result": {"exc_type": "system", "exc_message": [], "exc_module": "os"}}',
    "no error": b'{"status": "FAILURE", "result": "x"}',
    "a huge number": b'{"status": "PROGRESS", "result": {"bytes_done": -1, "bytes_total": 1%s}}' % (b"0" * 400),
}


@pytest.mark.parametrize("name", ["no JSON", "no object", "no exception"])
def test_a_forged_record_is_no_end_of_a_job(unserved: str, name: str) -> None:
    """A record and a message that cannot be read tell nothing: a wait goes on to the end that a worker stores."""
    job_id, forged = str(uuid4()), FORGED[name]
    with redis.Redis.from_url(unserved) as server, ArtifactClient(unserved) as client:
        server.set(f"{KEY}{job_id}", forged)
        job = client.job(job_id)
        assert job.state is JobState.RUNNING
        with pytest.raises(WaitTimeout):
            job.wait(timeout=0.2)

        def end() -> None:
            server.publish(f"{KEY}{job_id}", forged)
            server.set(f"{KEY}{job_id}", json.dumps({**END, "task_id": job_id}))

        timer = threading.Timer(0.2, end)
        timer.start()
        assert job.wait(timeout=WITHIN) == {"answer": 1}
        timer.join()


# Python may collect garbage in the deepest call that reads the record that is too deep: a finalizer has no room there.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_forged_record_fails_no_other_wait(unserved: str) -> None:
    """Of many jobs that are read at once, those with forged records run, and the end of the others is known."""
    ids = {name: str(uuid4()) for name in [*FORGED, "ended"]}
    with redis.Redis.from_url(unserved) as server, ArtifactClient(unserved) as client:
        for name, forged in FORGED.items():
            server.set(f"{KEY}{ids[name]}", forged)
        server.set(f"{KEY}{ids['ended']}", json.dumps({**END, "task_id": ids["ended"]}))
        other_type = str(uuid4())
        server.lpush(f"{KEY}{other_type}", "x")
        assert client.job(other_type).state is JobState.RUNNING

        async def wait() -> list[object]:
            async with AsyncArtifactClient(unserved) as other:
                waits = (other.job(id_).wait(timeout=WITHIN if name == "ended" else 0.5) for name, id_ in ids.items())
                return list(await asyncio.gather(*waits, return_exceptions=True))

        found = dict(zip(ids, asyncio.run(wait()), strict=True))
    assert found.pop("ended") == {"answer": 1}
    assert {type(each) for each in found.values()} == {WaitTimeout}, found
