"""Every route answers like the reference model, wherever the lines are: random logs that are moved step by step."""

import itertools
from dataclasses import replace
from typing import Final
from urllib.parse import urlencode

import hypothesis.strategies as st
import orjson
import pytest
from hypothesis import Phase, given, settings

from chronoverse.archive import chunk_writer
from chronoverse.archive.derived import DerivedBuilder
from chronoverse.archive.importing import import_jobs
from chronoverse.archive.job_objects import JobObjects, archive_lock
from chronoverse.archive.store_history import StoreHistory
from chronoverse.archive.workflow_settings import save_settings
from chronoverse.joblog.model import Attempt, JobRef, Line, Status
from tests.support.examples import FULL_EXAMPLES
from tests.web.routes.foreign import Foreign, ask_all
from tests.web.routes.model import EVERYTHING, Entry, Log, Query
from tests.web.routes.site import Site

#: With colours within words, with errors, and with two matches of a query in one line.
MESSAGES: Final = ("", "hay", "a needle", "\x1b[1mnee\x1b[0mdle needle", "error: Needle", "e\x1b[31me", "ü 0 errors")
QUERIES: Final = (("needle", False), ("NEEDLE|hay", True), ("e+", True), ("^$", True), ("nowhere", False))
#: An example has about 150 requests, which take almost a second.
EXAMPLES: Final = 5 if settings().max_examples >= FULL_EXAMPLES else 2
_numbers: Final = itertools.count(1)


def stamp(number: int) -> str:
    """A time that increases with the number."""
    return f"2026-03-03T10:{number // 60:02}:{number % 60:02}.000Z"


@st.composite
def logs(draw: st.DrawFn) -> tuple[Log, bool]:
    """A log, and whether our own runner writes it, with lines and ranges of lost lines only."""
    own = draw(st.booleans())
    kinds = ("line",) * 6 + (("lost",) if own else ("malformed", "lost", "skip", "extra"))
    entries: list[Entry] = []
    number = 0
    for kind in draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=24)):
        if kind == "extra":
            if entries and entries[-1][:2] == (number, "line"):
                entries.append(Entry(number, "extra", "out of sequence"))
            continue
        before, number = number, number + (draw(st.integers(1, 3)) if kind in ("lost", "skip") else 1)
        if kind == "lost":
            entries.append(Entry(number, kind, timestamp=stamp(number), start=before + 1))
        elif kind == "malformed":
            entries.append(Entry(number, kind, timestamp=stamp(number)))
        elif kind == "line":
            message, stream = draw(st.sampled_from(MESSAGES)), draw(st.sampled_from(("stdout", "stdout", "stderr")))
            has_time = own or draw(st.integers(0, 9)) > 0
            partial = draw(st.integers(0, 5)) == 0
            entries.append(Entry(number, kind, message, stream, stamp(number) if has_time else None, partial))
    if not any(each.kind != "extra" for each in entries):
        entries = [Entry(1, "line", "only", "stdout", stamp(1))]
        number = 1
    number = entries[-1].number if own else max(number, entries[-1].number)
    status, code = draw(st.sampled_from((("COMPLETED", 0), ("FAILED", 7), ("CANCELED", None))))
    end = {"number": number + 1, "status": status, "exit_code": code, "timestamp": stamp(number + 1)}
    return Log(tuple(entries), end), own


def write_foreign(job: Foreign, log: Log) -> None:
    """Writes the log with XADD, as a foreign runner."""
    ids = [f"{each.number}-{int(each.kind == 'extra')}" for each in log.entries]
    ask_all(job.url, [("XADD", job.key, *ids[at : at + 1], *each.fields()) for at, each in enumerate(log.entries)])


def write_own(site: Site, ref: JobRef, log: Log) -> Attempt:
    attempt = site.store.open(ref, "token")
    for each in log.entries:
        if each.kind == "lost":
            site.store.append_lost(attempt, each.start, each.number)
        else:
            line = Line(each.number, each.timestamp or "", each.message, each.stream, each.partial)
            site.store.append(attempt, [line])
    return attempt


def archive_up_to(site: Site, ref: JobRef, last: int, *, trim: bool) -> None:
    """Archives the numbers up to ``last``."""
    with archive_lock(site.store, ref) as token:
        to = JobObjects(site.store, site.objects, ref, token)
        chunk_writer.write_chunk(to, site.store.catalog.archive_state(ref), last + 1, trim=last if trim else 0)


def complete(site: Site, ref: JobRef) -> None:
    """Archives the rest, and completes the archive."""
    job = site.store.get_job(ref)
    assert job
    assert job.end
    archive_up_to(site, ref, job.end.sequence_num, trim=False)
    with archive_lock(site.store, ref) as token:
        to = JobObjects(site.store, site.objects, ref, token)
        assert chunk_writer.complete(to, job, 3_600, 0.0, 0.0, DerivedBuilder(ref)) is None


def check(site: Site, job: Foreign, log: Log, data: st.DataObject) -> None:
    """Compares all routes with the model, using random parameters."""
    q, regex = data.draw(st.sampled_from(QUERIES))
    stream = data.draw(st.sampled_from((None, "stdout", "stderr")))
    offset = data.draw(st.integers(0, log.last + 2) | st.just(10**15 - 1))
    limit = data.draw(st.sampled_from((1, 3, 1000)))
    start, length = data.draw(st.integers(0, log.last)), data.draw(st.integers(0, log.last))
    times = {"since": stamp(start), "until": stamp(start + length)} if data.draw(st.booleans()) else {}
    ids = {"workflow_id": job.workflow_id, "id": job.job_id}
    get = site.client.get

    said = get(job.path).json()
    assert said == {**ids, **log.job()}
    assert get(f"/workflows/{job.workflow_id}/jobs").json()["jobs"] == [said]

    only = f"&stream={stream}" if stream else ""
    lines = log.lines(Query(stream=stream))
    assert site.pages(f"{job.path}/logs?limit={limit}{only}") == lines
    assert site.pages(f"{job.path}/logs?limit={limit}&order=desc{only}") == lines[::-1]
    after = [line for line in lines if line["sequence_num"] > offset]
    before = [line for line in lines if line["sequence_num"] < offset]
    assert site.pages(f"{job.path}/logs?limit={limit}&offset={offset}{only}") == after
    assert site.pages(f"{job.path}/logs?limit={limit}&offset={offset}&order=desc{only}") == before[::-1]
    page = get(f"{job.path}/logs?limit=1000{only}")
    assert (page.json()["cursor"], page.headers["last-event-id"]) == (None, str(log.last if log.kept or log.end else 0))

    query = Query(q, regex, stream, times.get("since"), times.get("until"))
    asked = {"q": q, "regex": str(regex).lower(), **({"stream": stream} if stream else {})}
    path = f"{job.path}/logs/search?{urlencode({**asked, **times})}"
    assert site.pages(f"{path}&limit={limit}") == log.search(query)
    around = query._replace(before=data.draw(st.integers(0, 3)), after=data.draw(st.integers(0, 3)))
    path += f"&before={around.before}&after={around.after}&limit=1000"
    assert site.pages(path) == log.search(around)
    assert site.pages(f"{path}&order=desc") == log.search(around)[::-1]

    plain = Query(q, regex, stream)
    for asked_raw, wanted in (({}, EVERYTHING), (asked, plain)):
        raw = get(f"{job.path}/logs/raw", params={"format": "jsonl", **asked_raw})
        assert [orjson.loads(line) for line in raw.content.splitlines()] == log.lines(wanted)
    found = get(f"/workflows/{job.workflow_id}/logs/search", params={**asked, "per_job": "100"}).json()["jobs"]
    assert [each["logs"] for each in found] == [each for each in [log.search(plain)] if each]

    summary = get(f"{job.path}/summary", params={"bytes": "262144"}).json()
    assert (summary["job"], summary["compared_with"]) == (said, None)
    assert [line["sequence_num"] for line in summary["last"]] == [line["sequence_num"] for line in log.lines()]
    assert summary["slower"] == []
    profile = get(f"{job.path}/profile").json()
    assert (profile["job"], profile["compared_with"], profile["complete"]) == (said, None, True)
    assert [(each["seconds"], each["before"]["sequence_num"]) for each in profile["pauses"]] == log.pauses()
    assert all(each[side] in log.lines() for each in profile["pauses"] for side in ("before", "after"))
    assert summary["errors"]["count"] == sum(line["message"].startswith("error") for line in log.lines())

    if log.end:
        assert site.events(job, f"?offset={offset}") == list(log.events(offset))
        assert site.events(job, f"?{urlencode({**asked, 'offset': str(offset)})}") == list(log.events(offset, plain))
        if offset <= log.last:
            answer = get(f"{job.path}/wait", params={**asked, "offset": str(offset), "timeout": "5"}).json()
            model = log.wait(offset, plain)
            assert {"gaps": [], **{name: answer[name] for name in model if name in answer}} == model
            assert answer["job"] == said


def redact(site: Site, job: Foreign, log: Log, data: st.DataObject) -> Log:
    """Redacts some lines and returns the redacted log."""
    low: int = data.draw(st.integers(1, log.last))
    high: int = data.draw(st.integers(low, log.last))
    assert site.client.post(f"{job.path}/logs/redact", json={"from": low, "to": high}).status_code == 200
    log = log.redacted(low, high)
    check(site, job, log, data)
    return log


@pytest.mark.timeout(400)
# Failures are not shrunk: each example takes a second or more.
@settings(max_examples=EXAMPLES, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(st.data())
def test_every_route_answers_like_the_model(site: Site, data: st.DataObject) -> None:
    """Before and after the end: trimmed, partly archived, redacted, complete, gone from the store, and imported."""
    ended, own = data.draw(logs())
    log = replace(ended, end=None)
    job = Foreign(str(site.service.redis_url), f"model_{next(_numbers)}", "job_1")
    ref = JobRef(job.workflow_id, job.job_id)
    attempt: Attempt | None = None
    if own:
        attempt = write_own(site, ref, log)
    else:
        write_foreign(job, log)
    said = site.client.get(job.path).json()
    log = replace(log, times={name: said[name] for name in ("created_at", "started_at")})
    if not own and (first := log.entries[0].timestamp):
        assert said["created_at"] == said["started_at"] == first
    check(site, job, log, data)
    if data.draw(st.booleans()):
        trimmed: int = data.draw(st.integers(0, log.last))
        log = replace(log, trimmed=trimmed)
        job.trim(log.trimmed)
        check(site, job, log, data)
    if data.draw(st.booleans()) and log.kept:
        archive_up_to(site, ref, data.draw(st.integers(1, log.last)), trim=data.draw(st.booleans()))
        check(site, job, log, data)

    assert ended.end
    if attempt:
        code = ended.end["exit_code"]
        site.store.finish(attempt, Status(ended.end["status"]), code, 0, log.last + 1)
        end = {**ended.end, "timestamp": site.client.get(job.path).json()["finished_at"]}
    else:
        end = ended.end
        named = {
            "event": "end",
            **{name: str(end[name]) for name in ("status", "exit_code", "timestamp") if end[name] is not None},
        }
        job.add(f"{end['number']}-0", *itertools.chain(*named.items()))
    log = replace(log, end=end)
    check(site, job, log, data)
    if not own:
        # The first end is final: nothing after it belongs to the log.
        late = data.draw(st.lists(st.sampled_from((("message", "late needle"), ("note", "x"), ("event", "end")))))
        for number, fields in enumerate(late, end["number"] + 1):
            job.add(f"{number}-0", *fields)
        check(site, job, log, data)
    if not log.kept:
        return
    # A redaction takes a second.
    redacted_first, redacted_last = (data.draw(st.integers(0, 3)) == 0 for _ in range(2))
    if redacted_first:
        log = redact(site, job, log, data)
    complete(site, ref)
    check(site, job, log, data)
    if redacted_last:
        log = redact(site, job, log, data)
    ask_all(job.url, [("DEL", job.key)])
    check(site, job, log, data)
    catalog, workflow_ids = site.store.catalog, [job.workflow_id]
    catalog.change_settings(job.workflow_id, retention_seconds=data.draw(st.sampled_from((None, 90_000))), job_bytes=9)
    save_settings(site.store, site.objects, StoreHistory(site.store, site.objects), workflow_ids)
    saved = catalog.settings(workflow_ids)[job.workflow_id].own
    empty = "return redis.call('DEL', unpack(redis.call('KEYS', ARGV[1])))"
    ask_all(job.url, [("EVAL", empty, "0", f"chronoverse:{{{job.workflow_id}}}:*")])
    # The job, and its workflow's settings.
    found = [each for each in import_jobs(site.store, site.objects, 0) if not each.known]
    assert [each.problem for each in found] == ["", ""], found
    assert catalog.settings(workflow_ids)[job.workflow_id].own == saved
    check(site, job, log, data)
