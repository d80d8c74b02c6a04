"""What people do to a log: redact lines, delete a job. Each is a process that repeats its request until done."""

import contextlib
import http.client
import json
import time
from typing import Any

from chronoverse.archive.importing import import_jobs
from chronoverse.archive.store_history import StoreHistory
from chronoverse.errors import ChronoverseError
from chronoverse.joblog.sse import Decoder
from chronoverse.store import Store
from tests.simulation.kernel import Process, loop, world
from tests.simulation.parts import BALANCER, WORKFLOW, Runner, Site


def request(site: Site, method: str, path: str, body: Any = None, host: str = BALANCER) -> tuple[int, Any]:
    """An answer's status and JSON, or its JSON lines. Raises OSError and HTTPException."""
    with contextlib.closing(http.client.HTTPConnection(host, timeout=30)) as connection:
        headers = {"Authorization": f"Bearer {site.token('admin')}", "Content-Type": "application/json"}
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        response = connection.getresponse()
        data = response.read()
        if "jsonl" in path and response.status == 200:
            return 200, [json.loads(each) for each in data.splitlines()]
        return response.status, json.loads(data) if data else None


def until_done(site: Site, name: str, method: str, path: str, body: Any, done: Any) -> None:
    """Repeats a request in its own process until ``done`` of its answer is true."""

    def run() -> None:
        while not world.violations:
            try:
                status, answer = request(site, method, path, body)
            except (OSError, http.client.HTTPException, ValueError):
                status, answer = 0, None
            world.tell(name, f"{method} {path} {body}: {status} {answer}")
            if done(status, answer):
                return
            time.sleep(1.0)

    _person(site, name, run)


def register(site: Site, runner: Runner) -> None:
    until_done(site, f"registrar-{loop.steps}", "PUT", runner.path, {}, lambda status, _: 200 <= status < 500)


def set_quota(site: Site) -> None:
    if site.quota:
        body = {"job_bytes": site.quota}
        until_done(site, "admin", "PUT", f"/workflows/{WORKFLOW}/settings", body, lambda status, _: status == 200)
        site.people[-1].greenlets[0].join()
        time.sleep(2.0)  # Until it is on disk.


class Redacted:
    """A redaction of lines ``first`` to ``last``, with their original ``texts``. ``done_at``: when it was answered."""

    def __init__(self, first: int, last: int, texts: dict[int, str]) -> None:
        self.first, self.last, self.texts = first, last, texts
        self.asked_at, self.done_at = loop.time, float("inf")

    def is_shown(self, line: dict[str, Any], told: list[tuple[int, int]]) -> bool:
        """Whether ``line`` has its old text, although a notice in ``told`` says that it was redacted."""
        number, text = line["sequence_num"], line["message"]
        is_old = text == self.texts.get(number) != "[redacted]"
        # Whoever was notified of more lines was notified of all of them: it is unknown which were redacted.
        return is_old and any(self.first <= first <= number <= last <= self.last for first, last in told)


def redact(site: Site, runner: Runner, start: float, size: float, host: str, query: str) -> None:
    """Redacts some of the job's lines, while somebody repeatedly reads them at ``host`` with ``query``."""
    path, name = runner.path, f"redactor-{loop.steps}"

    def run() -> None:
        try:
            status, answer = request(site, "GET", f"{path}/logs?limit=1000")
        except (OSError, http.client.HTTPException, ValueError):
            return
        lines = answer["logs"] if status == 200 else []
        # While the job runs, the last line cannot be redacted. Many are near the beginning, so that much follows them.
        first = int(start**3 * len(lines))
        chosen = lines[first : first + 1 + int(size * 20)][:-1]
        if not chosen:
            return
        texts = {line["sequence_num"]: line["message"] for line in chosen}
        found = Redacted(min(texts), max(texts), texts)
        runner.redactions.append(found)
        for slow in (False, True):
            read = f"{path}/events?offset={max(found.first - 1 - 50 * slow, 0)}{query}"
            _person(site, f"reader-{loop.steps}-{slow}", _read_on, site, host, read, found, slow)
        time.sleep(2 * size)
        losses = len(site.losses)

        def done(status: int, answer: Any) -> bool:
            nonlocal losses
            if status in (404, 409):
                return True
            before, losses = losses, len(site.losses)
            # A store lost in the meantime has forgotten the redaction.
            if before == losses and status == 200 and answer["next"] is None and not answer["pending"]:
                found.done_at = loop.time
                # A node cut off from the store does not learn of it, and soon serves nothing from memory.
                for node in [each for each in site.nodes if each.deps and each.deps.tail.silent_seconds() < 1.5]:
                    for query in ("", "&q=n%3D"):
                        _probe(site, node.name, f"{path}/events?offset={found.first - 1}{query}", found)
                return True
            return False

        body = {"from": found.first, "to": found.last, "reason": "simulated"}
        until_done(site, name, "POST", f"{path}/logs/redact", body, done)

    _person(site, name, run)


def _person(site: Site, name: str, run: Any, *args: Any) -> None:
    process = Process(name)
    site.people.append(process)
    process.spawn(run, *args)


def _read_on(site: Site, host: str, path: str, redaction: Redacted, slow: bool) -> None:
    """Repeatedly reads the redacted lines until some seconds after the redaction."""
    until = loop.time + 20
    while loop.time < min(until, redaction.done_at + 3) and not world.violations:
        _probe(site, host, path, redaction, 0.5 * slow)
        time.sleep(site.shape.probes)


def _probe(site: Site, host: str, path: str, redaction: Redacted, pause: float | None = None) -> None:
    """Reads a stream for two seconds, or up to the lines, with pauses: no node may return the old text.

    This applies after the redaction, and to everyone who was notified of it.
    """
    decoder, began, until = Decoder(""), loop.time, loop.time + (2.0 if pause is None else 15.0)
    told = [(redaction.first, redaction.last)] if redaction.done_at <= began else []
    before, size = (site.outages, site.store.process), 1_000 if pause else 65_536
    closing = contextlib.closing(http.client.HTTPConnection(host, timeout=2 if pause is None else 10))
    with contextlib.suppress(OSError, http.client.HTTPException), closing as connection:
        connection.request("GET", path, headers={"Authorization": f"Bearer {site.token('probe')}"})
        response = connection.getresponse()
        while response.status == 200 and loop.time < until and (chunk := response.read1(size)):
            time.sleep(pause or 0.0)
            for event in decoder.feed(chunk):
                data = json.loads(event.data) if event.event in ("log", "redact") else {}
                # The store may have been lost meanwhile, or have crashed. Then it is done later.
                is_same = (site.outages, site.store.process) == before or redaction.done_at <= began
                if event.event == "redact":
                    told = [*told, (data["from"], data["to"])]
                elif data and redaction.is_shown(data, told * is_same):
                    world.violation(f"{host}{path} shows line {data['sequence_num']}, which was redacted before")
            if pause is not None and int(decoder.last_event_id or 0) >= redaction.last:
                return


def import_archive(site: Site, seconds: float) -> None:
    """Imports the archive after that many seconds, and retries until it succeeds."""

    def run() -> None:
        time.sleep(seconds)
        store = Store(site.store_url, lease_seconds=site.shape.lease)
        while not world.violations:
            try:
                found = list(import_jobs(store, site.objects, site.shape.lease))
                StoreHistory(store, site.objects, time.time).confirm()
                world.tell("importer", f"{len(found)} jobs, {[each.problem for each in found if each.problem]}")
                for loss in site.losses:
                    loss[1] = min(loss[1], loop.time)
                return
            except ChronoverseError as error:
                world.tell("importer", str(error))
                time.sleep(2.0)

    _person(site, "importer", run)


def delete(site: Site, runner: Runner) -> None:
    runner.is_deleted = True

    def done(status: int, answer: Any) -> bool:
        # An archiver completes what an earlier request started.
        if status in (204, 404):
            runner.deleted_at = loop.time
        runner.is_deleted = status != 409
        return status in (204, 404, 409)

    until_done(site, f"deleter-{loop.steps}", "DELETE", runner.path, None, done)
