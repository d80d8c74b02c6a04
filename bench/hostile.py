"""All known attacks at once, with one read token and one write token of a workflow, next to another workflow's jobs.

python -m bench.hostile [--seconds 300] [--quiet 30] [--direct] [--contend] [--only NAME …]

The workflow ``good`` has three runners and 50 viewers, which check numbers and delays, behind nginx unless
``--direct``. After ``--quiet`` seconds the attackers start on ``evil``, at idle priority unless they ``--contend``.
Exits with 1 if ``good`` lost a line or a job, or if the report exceeds one of :data:`BOUNDS`.
"""

import argparse
import contextlib
import gzip
import itertools
import json
import multiprocessing
import os
import random
import select
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import httpx
import psutil
from google.protobuf import json_format
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord

from bench.machine import raise_limits
from chronoverse.auth.minting import mint
from chronoverse.joblog.model import JobRef, Line, Status
from chronoverse.store import Store
from chronoverse.web.otlp.decoding import JSON, PROTOBUF
from tests.support.commands import chronoverse_argv
from tests.support.nginx import Nginx
from tests.support.servers import running
from tests.support.service import ROOT, Service, serving
from tests.support.viewers import ReconnectingViewer, ReconnectingViewers
from tests.web.otlp.messages import pairs, record
from tests.web.otlp.messages import request as log_records

WORKERS: Final = 2
GOOD, EVIL = "good", "evil"
STORED: Final = JobRef(GOOD, "stored")
JOBS: Final = tuple(JobRef(GOOD, f"job_{number}") for number in range(1, 4))
#: Viewers of each job, and lines of each job per second.
VIEWERS: Final = (17, 17, 16)
RATE: Final = 20
#: Interval between measurements of ``/healthz``, a search and the workers' memory, and a request's timeout, in seconds.
PROBE_SECONDS: Final = 0.2
GIVE_UP_SECONDS: Final = 5.0
#: An attacker's delay before it reconnects, and the time limit for the end of the good jobs, in seconds.
RETRY_SECONDS: Final = 0.1
END_SECONDS: Final = 60.0
#: The clients' addresses. The shipped nginx configuration trusts only 127.0.0.1.
GOOD_ADDRESS, EVIL_ADDRESS = "127.0.0.3", "127.0.0.2"
TIMESTAMP: Final = "2026-03-03T10:00:05.123Z"

#: Limits: the live lines' p99 as a multiple of the quiet one, ``/healthz`` p99 in seconds, seconds of a search's p99
#: beyond three times the quiet one, and the growth of all workers together in megabytes.
BOUNDS: Final[Mapping[str, float]] = {
    "times as late": 5.0,
    "healthz p99, s": 0.3,
    "searches beyond 3 x quiet, s": 0.3,
    "workers grow by MB": 300.0,
}
#: A placeholder in an attack's request for a number with as many digits, different each time.
NUMBER: Final = b"7777777"

#: The command of a good job: prints the time at a given rate, until a file exists.
EMITTER: Final = """
import os, sys, time
while not os.path.exists(sys.argv[1]):
    print(f"sent={time.monotonic()}", flush=True)
    time.sleep(1 / float(sys.argv[2]))
"""


class Attack(NamedTuple):
    """``connections`` that each send ``request`` and read the answer, or nothing, for at most ``stay`` seconds.

    :data:`NUMBER` in ``request`` is replaced by a different number for each connection.
    """

    name: str
    connections: int
    request: bytes
    reads: bool = False
    stay: float = 3_600.0


def attacks(reader: str, writer: str) -> list[Attack]:
    """All attacks, using the two tokens."""

    def get(path: str, token: str = reader, more: str = "Connection: close\r\n") -> bytes:
        return f"GET {path} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {token}\r\n{more}\r\n".encode()

    def post(path: str, body: bytes, length: int, mimetype: str = JSON) -> bytes:
        head = f"POST {path} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {writer}\r\nContent-Encoding: gzip\r\n"
        return f"{head}Content-Type: {mimetype}\r\nContent-Length: {length}\r\n\r\n".encode() + body

    def records(each: LogRecord, count: int, mimetype: str = PROTOBUF) -> bytes:
        message = log_records({"service.name": EVIL, "service.instance.id": "records"}, *[each] * count)
        content = (
            json_format.MessageToJson(message, indent=None).encode()
            if mimetype == JSON
            else message.SerializeToString()
        )
        body = gzip.compress(content)
        return post("/v1/logs", body, len(body), mimetype)

    jobs = f"/workflows/{EVIL}/jobs"
    nested: Any = None
    for _ in range(30):
        nested = {"": nested}
    paths = record("x")
    paths.attributes.extend(pairs({"log.file.path": [None] * 240}) * 999)
    bomb = gzip.compress(b" " * 2**23, 9)
    dense = gzip.compress(b"[" + b",".join([b'""'] * (2**23 // 3 - 1)) + b"]", 9)
    query = "q=(?:a.{0,50}){4}z|b&regex=true&limit=1000".replace("{", "%7B").replace("}", "%7D").replace("|", "%7C")
    number = NUMBER.decode()
    refused, costly = f"%5CpL%7B145%7Dx{number}", f"(?:er%2Bor|fail(?:ed)?|x[0-9]%2By)%20[a-f]%7B3,9%7D{number}$"
    return [
        Attack("unread pipelined answers", 300, b"GET /openapi.json HTTP/1.1\r\nHost: h\r\n\r\n" * 200),
        Attack("unread pages", 30, get(f"{jobs}/control/logs?limit=1000")),
        Attack("unread downloads", 20, get(f"{jobs}/long/logs/raw")),
        Attack("unread replays", 60, get(f"{jobs}/long/events")),
        Attack("stalled bodies", 64, post(f"{jobs}/x/logs", bomb[:-1], len(bomb))),
        Attack("slow heads", 300, b"GET / HTTP/1.1\r\nHost: h\r\nX-Slow: "),
        Attack("dense bodies", 4, post(f"{jobs}/x/logs", dense, len(dense)), reads=True),
        Attack("listings", 20, get(f"{jobs}?status=LOST&limit=1"), reads=True),
        Attack("highlights", 4, get(f"{jobs}/long/logs/search?{query}"), reads=True),
        Attack("context", 4, get(f"{jobs}/control/logs/search?q=match&before=50&after=50&limit=1000"), reads=True),
        Attack("tails of a stream", 8, get(f"{jobs}/stdout/events?tail=1&stream=stderr"), reads=True),
        Attack("searches that are abandoned", 8, get(f"{jobs}/long/logs/search?{query}"), stay=0.1),
        Attack("expressions that are refused", 24, get(f"{jobs}/stdout/events?regex=true&q={refused}"), reads=True),
        Attack("replays with an expression", 30, get(f"{jobs}/stdout/events?regex=true&q={costly}"), reads=True),
        Attack("summaries", 8, get(f"{jobs}/stdout/summary"), reads=True),
        Attack("records of 32,000 values", 1, records(record([None] * 32_000), 120), reads=True),
        Attack("records of 990 values", 1, records(record([None] * 990), 4_000), reads=True),
        Attack("key-value lists", 1, records(record([nested] * 30), 500), reads=True),
        Attack("key-value lists in JSON", 1, records(record([nested] * 30), 100, JSON), reads=True),
        Attack("paths that are lists", 1, records(paths, 16), reads=True),
        Attack("filters of live lines", 256, get(f"{jobs}/live/events?regex=true&q={costly}"), reads=True),
    ]


def prepare(url: str) -> None:
    store = Store(url)
    logs = {
        JobRef(EVIL, "control"): [f"match {chr(1) * 4_096}"] * 3_000,
        JobRef(EVIL, "long"): ["a" * 65_000 + "b"] * 1_000,
        JobRef(EVIL, "stdout"): ["x" * 40] * 500_000,
        STORED: ["x" * 40] * 20_000,
    }
    for ref, messages in logs.items():
        attempt = store.open(ref, "f" * 32)
        step = 500 if len(messages[0]) < 1_000 else 50
        for first in range(0, len(messages), step):
            batch = [Line(first + n, TIMESTAMP, text, "stdout") for n, text in enumerate(messages[first:][:step], 1)]
            store.append(attempt, batch)
        store.finish(attempt, Status.COMPLETED, 0, 0, len(messages) + 1)
    for number in range(2_500):
        store.register(JobRef(EVIL, f"pending_{number}"))
    store.close()


def write_evil_lines(url: str, stop: Any) -> None:
    store = Store(url)
    attempt = store.open(JobRef(EVIL, "live"), "f" * 32)
    for number in itertools.count(1):
        if stop.wait(1 / RATE):
            break
        store.append(attempt, [Line(number, TIMESTAMP, f"error {number:x} abcdef" * 100, "stdout")])
    store.close()


class ClientEndpoint:
    """nginx or the service itself, for clients with the address ``source``."""

    def __init__(self, server: Service | Nginx, source: str) -> None:
        self._server = server
        self._source = source
        self.url = server.url
        self.verify = server.verify
        self.logs = server.logs

    def connect(self, timeout: float) -> socket.socket:
        """An HTTP/1.1 connection."""
        if isinstance(self._server, Nginx):
            return self._server.connect(timeout, self._source)
        return socket.create_connection((self._server.host, self._server.port), timeout, (self._source, 0))


def work_together(chosen: Sequence[Attack], *args: Any, contend: bool) -> None:
    if not contend:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        # The attacks have 1,300 threads. At idle priority, 40 of them outweigh a process that searches. In their own
        # session, which the scheduler treats as a group, all of them weigh as much as one process at nice 19.
        os.setsid()
        with contextlib.suppress(OSError):
            Path("/proc/self/autogroup").write_text("19")
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=work, args=(attack, *args)) for attack in chosen]
    for process in processes:
        process.start()
    for process in processes:
        process.join()


def work(attack: Attack, endpoint: ClientEndpoint, stop: Any, results: Any) -> None:
    answers: Counter[str] = Counter()

    def attacker() -> None:
        while not stop.is_set():
            try:
                answers[_once(attack, endpoint, stop)] += 1
            except OSError as error:
                answers[type(error).__name__] += 1
            stop.wait(RETRY_SECONDS)

    threads = [threading.Thread(target=attacker, daemon=True) for _ in range(attack.connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    results.put((attack.name, dict(answers)))


def _once(attack: Attack, endpoint: ClientEndpoint, stop: Any) -> str:
    """Makes one connection. Returns the answer's status, or which side closed it."""
    with endpoint.connect(GIVE_UP_SECONDS) as sock:
        # The server stops reading while its answer is not read.
        with contextlib.suppress(TimeoutError):
            sock.sendall(attack.request.replace(NUMBER, b"%07d" % random.randrange(10 ** len(NUMBER))))
        ends = time.monotonic() + attack.stay
        if not attack.reads:
            poll = select.poll()
            poll.register(sock.fileno(), select.POLLRDHUP | select.POLLHUP | select.POLLERR)
            while not stop.is_set() and time.monotonic() < ends:
                if poll.poll(100):
                    return "cut by the server"
            return "closed by the attacker"
        head = b""
        while not stop.is_set() and (received := sock.recv(2**18)):
            head = head or received
        return head[9:12].decode("latin-1")


class TimedViewer(ReconnectingViewer):
    """A viewer that records when each line arrived, and its delay in seconds."""

    def __init__(self) -> None:
        super().__init__()
        self.late: list[tuple[float, float]] = []

    def _read(self, text: bytes) -> None:
        now = time.monotonic()
        super()._read(text)
        complete = text[: len(text) - len(self._text)]
        self.late += [(now, now - float(part.split(b'"')[0])) for part in complete.split(b"sent=")[1:]]


def view(endpoint: ClientEndpoint, job: JobRef, token: str, count: int, results: Any) -> None:
    path = f"/workflows/{job.workflow_id}/jobs/{job.job_id}/events?wait=60"
    viewers = ReconnectingViewers(endpoint, path, f"Authorization: Bearer {token}\r\n", count, TimedViewer)
    viewers.run(lambda: False)
    late = [each for viewer in viewers.viewers for each in viewer.late]  # type: ignore[attr-defined]
    lines = sorted({viewer.lines for viewer in viewers.viewers})
    results.put((job.job_id, viewers.errors, lines, dict(viewers.answers), late))


class Runners:
    """``chronoverse run`` for each good job until :meth:`stop`: the first publishes to the store, others over HTTP."""

    def __init__(self, directory: Path, store: str, endpoint: Service | Nginx, token: str, rate: int = RATE) -> None:
        self._stop = directory / "stop"
        clean = {name: value for name, value in os.environ.items() if not name.startswith("CHRONOVERSE_")}
        certificate = {"SSL_CERT_FILE": str(endpoint.certificate)} if isinstance(endpoint, Nginx) else {}
        self._processes = []
        for number, job in enumerate(JOBS):
            ours = {"CHRONOVERSE_DATA_DIR": str(directory / job.job_id), "PYTHONPATH": str(ROOT), **certificate}
            ours |= {"CHRONOVERSE_TOKEN": token} if number else {"CHRONOVERSE_REDIS_URL": store}
            server = ("--server", endpoint.url) if number else ()
            job_command = (sys.executable, "-c", EMITTER, str(self._stop), str(rate))
            argv = chronoverse_argv(
                "run", "--workflow", job.workflow_id, "--job", job.job_id, *server, "--", *job_command
            )
            process = subprocess.Popen(argv, env={**clean, **ours}, stdout=subprocess.DEVNULL)
            self._processes.append(process)

    def stop(self) -> list[int]:
        self._stop.touch()
        return [process.wait(END_SECONDS) for process in self._processes]

    def kill(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.kill()
                process.wait()


class Probe:
    def __init__(self, service: Service, endpoint: ClientEndpoint, path: str, token: str = "") -> None:
        authorization = f"Authorization: Bearer {token}\r\n" if token else ""
        self._request = f"GET {path} HTTP/1.1\r\nHost: h\r\n{authorization}Connection: close\r\n\r\n".encode()
        self._endpoint = endpoint
        self._pids = service.worker_pids()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._measure, daemon=True)
        #: The monotonic time of each measurement, with the response time, and with all workers' memory in bytes.
        self.seconds: list[tuple[float, float]] = []
        self.memory: list[tuple[float, int]] = []

    def _measure(self) -> None:
        while not self._over.wait(PROBE_SECONDS):
            began = time.monotonic()
            seconds = GIVE_UP_SECONDS
            with contextlib.suppress(OSError), self._endpoint.connect(GIVE_UP_SECONDS) as sock:
                sock.sendall(self._request)
                if sock.recv(65_536).startswith(b"HTTP/1.1 200 "):
                    seconds = time.monotonic() - began
            self.seconds.append((began, seconds))
            with contextlib.suppress(psutil.NoSuchProcess):
                self.memory.append((began, sum(psutil.Process(pid).memory_info().rss for pid in self._pids)))

    def __enter__(self) -> "Probe":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join()


def percentile(values: Sequence[float], share: float = 0.99) -> float:
    return sorted(values)[int((len(values) - 1) * share)] if values else float("nan")


def during(recorded: Sequence[tuple[float, Any]], span: tuple[float, float]) -> list[Any]:
    return [value for at, value in recorded if span[0] <= at < span[1]]


def play(asked: argparse.Namespace, directory: Path, stack: contextlib.ExitStack) -> dict[str, Any]:
    store = stack.enter_context(running(directory / "store"))
    prepare(store.url)
    service = stack.enter_context(serving(directory, store.url, workers=WORKERS))
    (directory / "nginx").mkdir()
    nodes = [(service.host, service.port)]
    server = service if asked.direct else stack.enter_context(Nginx(directory / "nginx", nodes))

    def token(subject: str, scope: str, workflow: str) -> str:
        return mint(service.secret, subject, [scope], [workflow], 3_600, time.time())

    context = multiprocessing.get_context("fork")
    seen, done, stop = context.Queue(), context.Queue(), context.Event()
    good, evil = ClientEndpoint(server, GOOD_ADDRESS), ClientEndpoint(server, EVIL_ADDRESS)
    reader = token("good-reader", "logs:read", GOOD)
    viewers = [
        context.Process(target=view, args=(good, job, reader, count, seen), daemon=True)
        for job, count in zip(JOBS, VIEWERS, strict=True)
    ]
    chosen = [
        attack
        for attack in attacks(token("evil-reader", "logs:read", EVIL), token("evil-writer", "logs:write", EVIL))
        if not asked.only or attack.name in asked.only
    ]
    attackers = context.Process(
        target=work_together, args=(chosen, evil, stop, done), kwargs={"contend": asked.contend}
    )
    writer = context.Process(target=write_evil_lines, args=(store.url, stop), daemon=True)
    stack.callback(stop.set)
    for process in (*viewers, writer):
        process.start()
    runners = Runners(directory, store.url, server, token("good-writer", "logs:write", GOOD))
    stack.callback(runners.kill)
    search = f"/workflows/{STORED.workflow_id}/jobs/{STORED.job_id}/logs/search?q=nowhere"
    searches = Probe(service, good, search, token("good-searcher", "logs:read", GOOD))
    with Probe(service, ClientEndpoint(server, "127.0.0.4"), "/healthz") as probe, searches:
        time.sleep(5)  # until all viewers are connected
        began = time.monotonic()
        time.sleep(asked.quiet)
        attacked = time.monotonic()
        attackers.start()
        time.sleep(asked.seconds)
        over = time.monotonic()
        stop.set()
        answers = dict(done.get(timeout=END_SECONDS) for _ in chosen)
        codes = runners.stop()
        results = sorted(seen.get(timeout=END_SECONDS) for _ in viewers)
    late = [each for *_, measured in results for each in measured]
    quiet, hostile = (began, attacked), (attacked, over)
    quiet_p99, hostile_p99 = percentile(during(late, quiet)), percentile(during(late, hostile))
    quiet_search, hostile_search = (
        percentile(during(searches.seconds, quiet)),
        percentile(during(searches.seconds, hostile)),
    )
    growth = max(during(probe.memory, hostile)) - max(during(probe.memory, quiet))
    headers = {"Authorization": f"Bearer {reader}"}
    jobs = [
        httpx.get(f"{service.url}/workflows/{job.workflow_id}/jobs/{job.job_id}", headers=headers).json()
        for job in JOBS
    ]
    return {
        "attackers' answers": answers,
        "good viewers' answers": [answers for _, _, _, answers, _ in results],
        "numbers lost, doubled or out of order": sum(wrong for _, wrong, _, _, _ in results),
        # The last number is the end's.
        "all viewers have all lines": [
            lines == [job["lines"] + 1] for (_, _, lines, _, _), job in zip(results, jobs, strict=True)
        ],
        "statuses": [job["status"] for job in jobs],
        "lines, and those dropped": [(job["lines"], job["dropped"]) for job in jobs],
        "runners' exit codes": codes,
        "live p99 quiet, ms": round(quiet_p99 * 1000, 1),
        "live p99 during the attacks, ms": round(hostile_p99 * 1000, 1),
        "worst, ms": round(max(during(late, hostile)) * 1000, 1),
        "times as late": round(hostile_p99 / quiet_p99, 2),
        "healthz p99, s": round(percentile(during(probe.seconds, hostile)), 3),
        "healthz worst, s": round(max(during(probe.seconds, hostile)), 3),
        "searches p99 quiet, s": round(quiet_search, 3),
        "searches p99 during the attacks, s": round(hostile_search, 3),
        "searches beyond 3 x quiet, s": round(hostile_search - 3 * quiet_search, 3),
        "workers grow by MB": round(growth / 2**20, 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--quiet", type=int, default=30)
    parser.add_argument("--direct", action="store_true", help="without nginx")
    parser.add_argument("--contend", action="store_true", help="attackers have ordinary priority")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these attacks only")
    asked = parser.parse_args()
    raise_limits()
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cv-")))
        report = play(asked, directory, stack)
    print(json.dumps(report, indent=2))
    passed = [name for name, bound in BOUNDS.items() if not report[name] <= bound]
    lost = report["numbers lost, doubled or out of order"] or not all(report["all viewers have all lines"])
    dropped = any(dropped for _, dropped in report["lines, and those dropped"])
    wrong = dropped or set(report["statuses"]) != {"COMPLETED"}
    for name in passed:
        print(f"{name}: {report[name]} is more than {BOUNDS[name]}", file=sys.stderr)
    return int(bool(passed or lost or wrong or any(report["runners' exit codes"])))


if __name__ == "__main__":
    sys.exit(main())
