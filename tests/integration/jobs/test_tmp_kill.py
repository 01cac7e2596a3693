import random, threading, time, os, signal
from dataclasses import replace
import pytest
from tests.servers.worker import Worker
from zot_artifact_client import ArtifactClient, JobFailed, WaitTimeout
from zot_artifact_client.contract import VERIFY, VerifyRequest, JobState

def test_it(valkey, tmp_path):
    valkey.empty()
    unheard = replace(VERIFY, name="artifact.unheard.v1")
    stop = time.monotonic() + 50
    bad = []
    counts = [0, 0]
    worker = Worker(tmp_path, valkey.url, concurrency=2, beat=True, sweep__recover__every="2s", jobs__lease="5s", broker_visibility_timeout="10s" ) if False else Worker(tmp_path, valkey.url, concurrency=2, beat=True, sweep__recover__every="2s", sweep__recover__after="10s", jobs__lease="5s")
    with worker:
        def go(n):
            i = 0
            with ArtifactClient(valkey.url) as client:
                while time.monotonic() < stop:
                    i += 1
                    id_ = f"k-{n}-{i}"
                    job = client.submit(unheard, VerifyRequest(bucket="releases", key="wrong"), job_id=id_)
                    try:
                        job.wait(120)
                    except JobFailed as e:
                        if e.state != "refused": bad.append((id_, "first", e.state, str(e)))
                    except Exception as e:
                        bad.append((id_, "first", repr(e))); continue
                    counts[0] += 1
                    try:
                        c = client.submit(VERIFY, VerifyRequest(bucket="releases", key="app.tgz"), job_id=id_)
                        c.wait(60)
                        bad.append((id_, "good?"))
                    except JobFailed as e:
                        if e.state != "failed": bad.append((id_, "second", e.state, str(e)))
                    except Exception as e:
                        import redis
                        r = redis.Redis.from_url(valkey.url)
                        un = [v for k, v in r.hgetall("unacked").items() if id_.encode() in v]
                        qs = {q: [m for m in r.lrange(q, 0, -1) if id_.encode() in m] for q in ("interactive","transfer","sweep")}
                        from contextlib import closing
                        from worker.catalogue import Catalogue
                        with closing(Catalogue(f"sqlite:///{worker.home}/catalogue.sqlite3")) as cat: row = cat.ledger.get(id_)
                        bad.append((id_, "second", repr(e), c.state, r.hget("zot-artifacts:outbox", id_), [k for k in r.keys("*outbox*")], len(un), {q: len(v) for q,v in qs.items()}, r.get(f"celery-task-meta-{id_}"), row, worker.log.count(id_), [l for l in worker.log.splitlines() if id_ in l]))
                    counts[1] += 1
        threads = [threading.Thread(target=go, args=(n,)) for n in range(8)]
        for t in threads: t.start()
        kills = 0
        while time.monotonic() < stop:
            time.sleep(random.uniform(1, 4))
            if kills % 3 == 2:
                for c in worker.children():
                    try: os.kill(c, signal.SIGKILL)
                    except OSError: pass
            else:
                worker.kill(); worker.start()
            kills += 1
        for t in threads: t.join()
    print(counts, kills, bad)
    assert not bad
