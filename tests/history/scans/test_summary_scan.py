"""A summary has the errors and last lines of the whole log, wherever it is stored."""

import contextlib
import os
from pathlib import Path
from typing import Any

import orjson
import pytest

from chronoverse.archive.object_store import FileObjectStore
from chronoverse.archive.reader import ArchiveReader
from chronoverse.archive.redaction import Redaction, RedactionRequest
from chronoverse.errors import JobNotFound
from chronoverse.history.scans.app import ScanApp
from chronoverse.history.scans.scan import SummaryScan
from chronoverse.history.scans.summary_scan import SummaryProgress
from chronoverse.joblog.model import JobRef, Line, Status
from chronoverse.joblog.summary import MAX_LAST_LINES
from chronoverse.store import Store
from tests.support.archives import archive_up_to
from tests.support.bench import NOW
from tests.support.scans import scan_app, write_job
from tests.support.servers import RedisServer

JOB = JobRef("wf_1", "job_1")


def summarize(app: ScanApp, ref: JobRef = JOB, **more: Any) -> dict[str, Any]:
    """A job's summary. These tests do not check what it says about other runs."""
    fields: dict[str, Any] = {"page_bytes": 65_536, "asked_at": 1000.0, "patience": 5.0}
    scan = SummaryScan(workflow_id=ref.workflow_id, job_id=ref.job_id, **(fields | more))
    found: dict[str, Any] = orjson.loads(app.read_summary(SummaryScan.from_json(scan.to_json())))
    causes = [found["cause"]["line"]] if found["cause"] else []
    for line in (*found["new"]["first"], *found["errors"]["first"], *causes):
        del line["seen"]
    return found


@pytest.mark.parametrize(("archived", "good"), [(0, ["good"]), (700, ["good"]), (2_000, ["good"]), (2_000, [])])
def test_a_summary_without_time_continues_in_another_process(
    store: Store, tmp_path: Path, archived: int, good: list[str]
) -> None:
    """It scans from the end backwards, says how far it got, and finally has the whole log's counts.

    Lines written meanwhile are included.
    """
    objects, ref = FileObjectStore(tmp_path), JobRef("wf_1", "bad")
    for each in good:
        write_job(store, each, [f"step {number}" for number in range(1, 101)])
    attempt = store.open(ref, "token")
    lines = [Line(number, NOW, f"step {number}", "stdout") for number in range(1, 2_001)]
    lines[699] = lines[699]._replace(message="panic: index out of range")
    store.append(attempt, lines)
    if archived:
        archive_up_to(store, objects, ref, archived, trim=True)
    times = (1000.0 + 0.1 * tick for tick in range(10**6))
    progress = SummaryProgress()
    processes = [
        ScanApp(store, ArchiveReader(objects, store.chunks.chunk), 65_536, lambda: next(times), progress=progress)
        for _ in range(2)
    ]
    scanned_to = 2_002
    for count in range(200):
        summary = summarize(processes[count % 2], ref, seconds=0.35, patience=1e9)
        if count == 0:
            assert (summary["complete"], summary["errors"]["count"]) == (False, None)
            assert summary["new"]["count"] == (None if good else 0)
            assert summary["last"][-1]["sequence_num"] == 2_000
            store.append(attempt, [Line(2_001, NOW, "fatal: the end", "stdout")])
            store.finish(attempt, Status.FAILED, 1, 0, 2_002)
            continue
        assert summary["complete"] or summary["scanned_to"] <= scanned_to
        scanned_to = summary["scanned_to"]
        if summary["complete"]:
            break
    assert 1 < count < 60
    assert (summary["scanned_to"], summary["truncated"], summary["compared_with"]) == (1, False, good or None)
    expected = [lines[699].to_json(), {**lines[699].to_json(), "sequence_num": 2_001, "message": "fatal: the end"}]
    assert (summary["job"]["status"], summary["job"]["exit_code"]) == ("FAILED", 1)
    assert summary["errors"] == {"count": 2, "first": expected}
    assert summary["last"] == [*(line.to_json() for line in lines[1 - MAX_LAST_LINES :]), expected[1]]
    assert summary["new"] == (summary["errors"] if good else {"count": 0, "first": []})
    first = 2_001 if good else 1_987
    assert summary["cause"] == {"from": first, "to": 2_001, "line": expected[1], "kind": "error", "confidence": "high"}


def test_an_empty_log_and_no_log(store: Store, tmp_path: Path) -> None:
    """An empty log has an empty summary. A missing log is an error."""
    app = scan_app(store, FileObjectStore(tmp_path))
    with pytest.raises(JobNotFound):
        summarize(app)
    store.register(JOB)
    summary = summarize(app)
    assert (summary["errors"], summary["last"], summary["truncated"]) == ({"count": 0, "first": []}, [], False)


def test_the_new_lines_of_a_failed_run(store: Store, tmp_path: Path) -> None:
    """Lines whose shape no earlier good run has, once per shape."""
    good = [Line(number, NOW, f"step {number} took {number * 7} ms", "stdout") for number in range(1, 31)]
    bad = [*good[:20], Line(21, NOW, "cannot open 17 files", "stderr"), Line(22, NOW, "cannot open 4 files", "stderr")]
    write_job(store, "good", good)
    write_job(store, "bad", bad, Status.FAILED)
    app = scan_app(store, FileObjectStore(tmp_path))
    summary = summarize(app, JobRef("wf_1", "bad"))
    assert summary["compared_with"] == ["good"]
    assert summary["new"] == {"count": 2, "first": [{**bad[20].to_json(), "repeated": 2}]}
    assert summarize(app, JobRef("wf_1", "good"))["compared_with"] is None


def test_the_progress_of_one_job_is_never_anothers() -> None:
    """Although they share a slot, and whatever is there."""
    progress, (one, other) = SummaryProgress(), (bytes(4) + number * 12 for number in (b"1", b"2"))
    progress.put(one, [1])
    assert (progress.get(one), progress.get(other)) == ([1], None)
    progress.put(other, [2, 3])
    assert (progress.get(one), progress.get(other)) == (None, [2, 3])
    os.pwrite(progress._file, b"7", 22)
    assert progress.get(other) is None


def test_jobs_of_one_name_and_time_in_two_workflows(server: RedisServer, prefix: str, tmp_path: Path) -> None:
    """Results of one are not used for the other, nor lines that were redacted since."""
    objects = FileObjectStore(tmp_path)
    with contextlib.closing(Store(server.url, prefix=prefix, clock=lambda: 1_772_532_005.0)) as store:
        app = scan_app(store, objects)
        for name, texts in (("team-a", ("error: a", "fine")), ("team-b", ("fine", "error: b"))):
            attempt = store.open(ref := JobRef(name, "job"), "token")
            store.append(attempt, [Line(number, NOW, text, "stdout") for number, text in enumerate(texts, 1)])
            store.finish(attempt, Status.FAILED, 3, 0, 3)
            errors = [text for text in texts if text != "fine"]
            assert [each["message"] for each in summarize(app, ref)["errors"]["first"]] == errors
        everything = RedactionRequest(1, 2, lambda line: line.message == "error: b", {}, exact=True)
        assert Redaction(store, objects, ref, everything).run().lines == 1
        assert summarize(app, ref)["errors"]["count"] == 0


def test_the_errors_have_time_of_their_own(store: Store, tmp_path: Path) -> None:
    """Even if new lines used up all of theirs."""
    texts = [f"step {number}" if number % 50 else "fatal" for number in range(1, 3_001)]
    write_job(store, "good", texts[:9])
    write_job(store, "bad", texts, Status.FAILED)
    app = scan_app(store, FileObjectStore(tmp_path), 0.1)
    summary = summarize(app, JobRef("wf_1", "bad"), seconds=1.0, patience=1e9)
    assert summary["complete"] is False
    found = [sum(each.get("repeated", 1) for each in summary[kind]["first"]) for kind in ("new", "errors")]
    assert min(found) > 10
    assert summary["scanned_to"] < 2_500
