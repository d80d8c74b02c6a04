"""flask-sse: the same framework as the service's, with one subscription for each viewer and nothing stored."""

import contextlib
import json
import os
from collections.abc import Sequence

import redis

from bench.load import Target
from bench.peers import environment
from bench.peers.base import Peer
from bench.peers.store import start_store, store_version
from bench.processes import ROOT, free_port, listens, running
from bench.produce import line_json
from bench.reference import Grammar


class PublishSink:
    """Sends what ``sse.publish()`` sends, in batches."""

    def __init__(self, url: str) -> None:
        self._url = url

    def open(self, jobs: range) -> None:
        self._client = redis.Redis.from_url(self._url)

    def publish(self, batch: Sequence[tuple[int, int, list[str]]]) -> None:
        pipeline = self._client.pipeline(transaction=False)
        for job, first, texts in batch:
            for number, text in enumerate(texts, first):
                event = {"data": line_json(text, number).decode(), "type": "log", "id": str(number)}
                pipeline.publish(f"j{job}", json.dumps(event))
        pipeline.execute()

    def finish(self, jobs: range, last: int) -> None:
        self._client.close()


class FlaskSse(Peer):
    """One SUBSCRIBE per viewer. A viewer that connects late misses what was sent before."""

    name = "flask-sse"
    about = "flask-sse under gunicorn with gevent, one Redis subscription per viewer, no replay"
    grammar = Grammar(rb"event:log\ndata:{data}\nid:(?P=number)\n\n")
    answers = False

    @classmethod
    def missing(cls) -> str:
        return environment.missing("flask-sse")

    def start(self, stack: contextlib.ExitStack) -> None:
        self.url, store = start_store(self.folder, stack)
        self.port = free_port()
        argv = [str(environment.python()), "-m", "gunicorn", "-c", os.devnull, "-k", "gevent"]
        argv += ["--worker-connections", "20000", "-w", str(self.workers), "-b", f"127.0.0.1:{self.port}"]
        argv += ["--no-control-socket", "--timeout", "120", "bench.peers.flask_sse_app:app"]
        # Without it redis-py closes a silent subscription after five seconds.
        environ = {"FLASK_SSE_REDIS_URL": f"{self.url}?socket_timeout=3600", "PYTHONPATH": str(ROOT)}
        master = stack.enter_context(running(argv, lambda: listens(self.port), self.folder / "flask-sse.log", environ))
        self.wait_for_workers(master, store)

    def target(self, job: int) -> Target:
        return Target("127.0.0.1", self.port, f"/stream?channel=j{job}")

    def sink(self) -> PublishSink:
        return PublishSink(self.url)

    def watched(self) -> int:
        with redis.Redis.from_url(self.url) as client:
            # Not PUBSUB NUMSUB: Valkey 9.1.2 answered 86896123 for 500 subscribers.
            return sum(each["sub"] == "1" for each in client.client_list("pubsub"))

    def versions(self) -> dict[str, str]:
        found = environment.versions(["flask-sse", "flask", "gunicorn", "gevent", "redis"])
        return found | {"store": store_version(self.url)}
