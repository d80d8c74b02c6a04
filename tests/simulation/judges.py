"""The judges. Each examines the quiescent site, and calls :meth:`World.violation`."""

import contextlib
import json
from collections.abc import Callable
from functools import lru_cache, partial
from http.client import HTTPException
from math import inf
from typing import Any, Final
from urllib.parse import quote

import gevent
from gevent.event import Event

from chronoverse.errors import Closed
from chronoverse.joblog.model import Job, JobRef, Status, seconds_of
from chronoverse.joblog.sse import Decoder
from chronoverse.live.feed import Feed, Known
from chronoverse.live.replay import Replay
from chronoverse.live.replay_cache import ReplayCache, ReplaySegment
from chronoverse.live.viewer import Viewer as LiveViewer
from chronoverse.runner.spool.spool import Spool
from tests.faults.oracle import GAP, JOB, LINE, Seen, judge
from tests.faults.watching import history
from tests.simulation.actions import request
from tests.simulation.kernel import EPOCH, MONOTONIC, loop, world
from tests.simulation.parts import BALANCER, WORKFLOW, Runner, Site, Viewer, WaitViewer, in_process
from tests.support.workflow_client import said
from tests.web.routes.model import EVERYTHING, Entry, Log, Query

#: Seconds after the faults until everybody has everything.
REST_SECONDS: Final = 180.0
#: Seconds until the effects of faults are over, and a line's maximum delay then, 5 s of which are for detecting that
#: the network has dropped an idle connection.
SETTLE_SECONDS: Final = 60.0
LATE_SECONDS: Final = 12.0
REDACTED: Final = "[redacted]"


def watch(site: Site) -> None:
    """Makes the code under test check at each step what its docstrings promise, unless a store goes back."""
    acknowledge, reconcile = Spool.acknowledge, Feed.reconcile
    invalidate, remember = ReplayCache.invalidate, ReplayCache._remember
    read_after, redact = Replay._read_after, Feed.redact
    told_at: dict[tuple[Feed, int], float] = {}
    invalidated_at: dict[tuple[ReplayCache, JobRef], float] = {}

    def acknowledged(spool: Spool, index: int) -> None:
        acknowledge(spool, index)
        for each in site.runners if index < spool.first else ():
            each.has_forgotten |= each.publisher is not None and each.publisher.spool is spool
        if spool.safe > spool.acked:
            world.violation(f"{world.process_name}: {spool.safe} lines are safe, and {spool.acked} acknowledged")

    def reconciled(feed: Feed, job: Job, asked: Known | None = None) -> bool:
        known, before, done = feed.known, feed.job, reconcile(feed, job, asked)
        if done and asked not in (None, known):
            world.violation(f"{world.process_name}: {feed.ref} was {known}, and has the answer to {asked}")
        is_older = before and (
            before.age > job.age or before.archived > job.archived or before.redactions > job.redactions
        )
        if done and before and is_older and not site.outages and not feed.final:
            world.violation(f"{world.process_name}: {feed.ref} was {before}, and is {job}")
        return done

    def invalidated(cache: ReplayCache, ref: JobRef) -> None:
        invalidate(cache, ref)
        invalidated_at[cache, ref] = cache.clock()

    def remembered(cache: ReplayCache, key: Any, segment: Any, asked: tuple[int, float]) -> None:
        remember(cache, key, segment, asked)
        if key in cache._segments and asked[1] < invalidated_at.get((cache, key[0]), 0.0):
            world.violation(f"{world.process_name} caches lines of {key[0]} from before a redaction")

    def redacted(feed: Feed, ranges: Any) -> None:
        redact(feed, ranges)
        told_at[feed, feed.version] = loop.time

    def replayed(replay: Replay, cursor: int, seconds_left: float) -> ReplaySegment | None:
        notices = [(at, each) for at, frame in replay.feed.redactions for each in _data(frame)]
        told = [(told_at[replay.feed, at], (each["from"], each["to"])) for at, each in notices]
        found = read_after(replay, cursor, seconds_left)
        redactions = [each for runner in site.runners if runner.job == replay.feed.ref for each in runner.redactions]
        # An earlier redaction's notice can have been of more lines, if it was unknown which were redacted.
        known = [(each, [notice for at, notice in told if at > each.asked_at]) for each in redactions if told]
        for line in _data(found.frames) if found and known and not site.outages else ():
            if "message" in line and any(each.is_shown(line, notices) for each, notices in known):
                world.violation(f"{world.process_name} reads {line} of {replay.feed.ref}, although redacted")
        return found

    Spool.acknowledge, Feed.reconcile, Feed.redact = acknowledged, reconciled, redacted  # type: ignore
    Replay._read_after, ReplayCache.invalidate, ReplayCache._remember = replayed, invalidated, remembered  # type: ignore


def awake(site: Site) -> None:
    """No viewer waits to be woken while its feed's ring has more lines."""
    tails = [node.deps.tail for node in site.nodes if node.deps and not node.process.dead]
    for each in [each for tail in tails for feed in tail._feeds.values() for each in feed.waiters]:
        if isinstance(each, LiveViewer) and each.line_filter is None and not each.is_replaying and each.has_more:
            woken = getattr(each.on_wake, "__self__", None)
            if isinstance(woken, Event) and woken.linkcount() and not woken.is_set():
                world.violation(f"a viewer of {each.feed.ref} waits at line {each.cursor} of {each.feed.cursor}")


@lru_cache(1_000)
def _data(frames: bytes) -> list[dict[str, Any]]:
    return [json.loads(each.data) for each in Decoder("").feed(frames) if each.data.startswith("{")]


def rest(site: Site) -> None:
    """Liveness: waits until everybody has everything."""
    runners = site.runners
    _wait(lambda: [each.name for each in runners if not each.is_done], "runners")
    _wait(lambda: [r.name for r in runners if r.is_deleted and r.deleted_at == inf and not r.is_gone], "deletions")
    # What people do changes what the judges compare. A redaction can be pending for an hour.
    until = loop.time + REST_SECONDS
    while loop.time < until and not all(each.greenlets[0].dead for each in site.people):
        gevent.sleep(1.0)
    deleted = {each.job for each in site.runners if each.is_deleted or each.is_gone}
    _wait(lambda: [each.name for each in site.viewers if not (each.ending or each.job in deleted)], "viewers")
    if not world.violations:
        _wait(lambda: _outdated(site), "viewers of the workflow")
    # Viewers of a job that the store has lost wait for it to begin again.
    for process in [v.process for v in site.viewers if v.job in deleted] + [w.process for w in site.workflow_viewers]:
        site.network.kill(process)
    # A node is not notified that the network has dropped a stream.
    if not world.violations and not world.counts.get("half_open"):
        _wait(lambda: _leftovers(site), "leftovers")


def _leftovers(site: Site) -> list[str]:
    """What nodes still hold without clients: slots of streams, and watched jobs."""
    found = [(node.name, node.deps) for node in site.nodes if node.deps is not None]
    kept = [(name, len(deps.admission), deps.tail.watched) for name, deps in found]
    return [f"{name} has {streams} streams and {jobs} jobs" for name, streams, jobs in kept if streams or jobs]


def _outdated(site: Site) -> list[str]:
    """The workflow's viewers whose jobs differ from its listing. They can lack old jobs: they read for 2 s at first."""
    listed, query = dict[str, Any](), "?limit=1000"
    while query:
        page = _answer(site, f"/workflows/{WORKFLOW}/jobs{query}")[1]
        listed |= {job["id"]: said(job) for job in page.get("jobs", ())}
        query = f"?limit=1000&cursor={page['cursor']}" if page.get("cursor") else ""
    new = {each.job.job_id for each in site.runners}
    knows = {each.process.name: {name: said(job) for name, job in each.known.items()} for each in site.workflow_viewers}
    wanted = {who: {at: job for at, job in listed.items() if at in new or at in known} for who, known in knows.items()}
    return [f"{who} knows {known}, not {wanted[who]}" for who, known in knows.items() if known != wanted[who]]


def _wait(missing: Callable[[], list[str]], what: str) -> None:
    until = loop.time + REST_SECONDS
    while (left := missing()) and not world.violations:
        if loop.time >= until:
            world.violation(f"not over {REST_SECONDS:g} s after the last fault: {what}: {', '.join(left)}")
        gevent.sleep(1.0)


def judge_round(site: Site) -> None:
    """Judges each of the round's jobs."""
    for runner in site.runners:
        if world.violations:
            return
        viewers = [each for each in site.viewers if each.job == runner.job]
        if runner.is_gone:
            _judge_gone(site, runner)
        elif runner.is_deleted:
            _judge_deleted(site, runner)
        else:
            _judge_job(site, runner, viewers)


def _answer(site: Site, path: str, host: str = BALANCER) -> tuple[int, Any]:
    """The answer to a GET, with retries, since a pool can still have connections that the network has dropped."""
    answer: tuple[int, Any] = 0, None
    for _ in range(10):
        with contextlib.suppress(OSError, HTTPException):
            answer = in_process("judge", lambda: request(site, "GET", path, host=host), 60.0)
            if answer[0] < 500:
                break
    return answer


def _judge_deleted(site: Site, runner: Runner) -> None:
    """An acknowledged deletion is permanent."""
    status = _answer(site, runner.path)[0]
    if status != 404:
        world.violation(f"{runner.job} was deleted at {runner.deleted_at:.1f} s, and answers {status}")
    elif any(name.startswith(f"{runner.job.workflow_id}/{runner.job.job_id}/") for name in site.objects.stored):
        world.violation(f"{runner.job} was deleted, and has objects left")


def _judge_gone(site: Site, runner: Runner) -> None:
    """The remains of a job whose store was lost contain nothing redacted, and waited a lease for its runner."""
    world.count("gone jobs")
    status, state = _answer(site, runner.path)
    if runner.is_deleted or status != 200:
        return
    _judge_redactions(runner, [], _pages(site, runner, with_gaps=True))
    asked_at = runner.publisher.asked_at if runner.publisher else inf
    silent = asked_at - max((asked for asked, _ in runner.contacts), default=0.0)
    is_lost = state["status"] == Status.LOST and isinstance(runner.refusal, Closed)
    if is_lost and not runner.deaths and silent < 0.9 * site.shape.lease:
        world.violation(f"{runner.job} was LOST when its runner returned after {silent:.1f} s")


def _pages(site: Site, runner: Runner, *, with_gaps: bool) -> list[Seen]:
    read = partial(history, f"http://{BALANCER}", runner.job, site.token("judge"), with_gaps=with_gaps)
    found: list[Seen] = in_process("judge", read, 60.0)
    return found


def _judge_job(site: Site, runner: Runner, all_viewers: list[Viewer]) -> None:
    status, state = _answer(site, runner.path)
    if status == 404 and runner.publisher is not None and runner.publisher.base is None:
        return
    if status != 200:
        world.violation(f"{runner.job} answers {status}")
        return
    is_lost = state["status"] == Status.LOST
    # A LOST job's end is a viewer's last event, even if the store then loses it, or the job, and its runner continues.
    may_leave = site.outages > 0 and not is_lost
    viewers = [v for v in all_viewers if not (may_leave and any("LOST" in (x.state or {}).values() for x in v.seen))]
    plain = [each for each in viewers if each.query is None and each.ended_at > runner.lost_at]
    left_out = _counted(site, runner)[1]
    # Viewers can have lines that are no longer in the log, and filtered viewers have no gaps. Then the pages' apply.
    by_pages = runner.lost_at > 0 or runner.has_forgotten or (runner.dropped + left_out > 0 and not plain)
    pages = _pages(site, runner, with_gaps=by_pages)
    if is_lost and not (runner.lapses or runner.deaths):
        world.violation(f"{runner.job} is LOST, and its runner was never silent: {runner.contacts[-3:]}")
    if runner.refusal is not None and not (is_lost and type(runner.refusal) is Closed):
        world.violation(f"{runner.job} is {state['status']}, and its runner was refused: {runner.refusal!r}")
    if is_lost:
        # What its runner did not deliver is in its spool.
        world.count("lost jobs")
        runner.printed = {writer: printed._replace(required=0) for writer, printed in runner.printed.items()}
    if state["attempt"] > 1 + runner.deaths + runner.lapses + 2 * site.outages:
        world.violation(f"{runner.job} has {state['attempt']} attempts")
    _judge_redactions(runner, all_viewers, pages)
    log = _log(site, runner.path)
    _judge_routes(site, runner.path, log)
    if not site.outages:
        _judge_audit(site, runner, pages)
        for viewer in viewers:
            _judge_notices(site, runner, viewer)
    views = {each.name: _unredacted(runner, each.seen) for each in plain}
    if by_pages:
        # A store that was lost has also lost which lines were over the quota.
        all_views = {"pages": _unredacted(runner, pages), **views}.items()
        views = {name: [x._replace(message="lost") if x.kind == GAP else x for x in seen] for name, seen in all_views}
        pages = [each for each in pages if each.kind != GAP]
    pages = _unredacted(runner, pages)
    verdict = judge(runner.printed, views, pages)
    if site.quota and not runner.lost_at > 0:
        _judge_quota(site, runner, pages, left_out if by_pages or (is_lost and site.outages) else verdict.dropped)
    world.count("checked", verdict.checked)
    world.count("named lost", verdict.named)
    has_all = not (runner.deaths or runner.dropped or runner.has_forgotten)
    if runner.lost_at > 0:
        # Of two objects, an import uses the one with more redacted lines, and reports what only the other one has. What
        # followed the archive of a LOST job is unknown.
        has_all = has_all and runner.keep_bytes > 10**6 and not (runner.redactions or is_lost or site.quota)
    if verdict.named > left_out * by_pages and has_all:
        world.violation(f"{runner.job} names {verdict.named} lines as lost, and its runner has them all")
    if not verdict.clean:
        world.violation(f"{runner.job}: {verdict}")
    has_less = runner.has_forgotten or (is_lost and site.outages > 0)
    for viewer in viewers:
        _judge_gaps(site, viewer, pages)
        _judge_stream(site, viewer)
        # In a slow network, a scan ends after its first 32 lines: it has 0.1 s.
        share = (site.shape.slow + site.shape.late / 5) / 4 if viewer.query else 0.0
        late, slow = viewer.ended_at - runner.over_at, len(pages) * share
        if runner.over_at > site.quiet_since + SETTLE_SECONDS and late > LATE_SECONDS + slow and not runner.refusal:
            world.violation(f"{viewer.name} got the end of {runner.job} after {late:.1f} s, without faults")
        if viewer.query is not None:
            _judge_filtered(runner, viewer, log, may_have_more=has_less)


def _counted(site: Site, runner: Runner) -> tuple[int, int]:
    """The bytes that the store counts toward the job's quota, and the lines that the quota dropped."""
    key = f"chronoverse:{{{WORKFLOW}}}:{runner.job.job_id}:job"
    counted, left_out = site.store.ask(site.store._link, [("HMGET", key, "bytes", "left_out")])[1][0]
    return int(counted or 0), int(left_out or 0)


def _judge_quota(site: Site, runner: Runner, pages: list[Seen], named: int) -> None:
    """Stored bytes are exact, dropped lines are ``named``, and nothing is dropped below the quota."""
    (counted, left_out), size = _counted(site, runner), sum(len(each.message) for each in pages if each.kind == LINE)
    world.count("over quota", left_out)
    is_exact = site.quota - 70 < size <= site.quota == counted if left_out else size == counted
    if not is_exact or named != left_out:
        world.violation(f"{runner.job} has {size} bytes, counts {counted}, names {named} of {left_out} dropped lines")


def _log(site: Site, path: str) -> Log:
    """A log's lines, as in the reference model."""
    names = ("sequence_num", "message", "stream", "timestamp")
    found = [[each[name] for name in names] for each in _answer(site, f"{path}/logs/raw?format=jsonl")[1]]
    return Log(tuple(Entry(number, "line", *rest) for number, *rest in found))


def _judge_routes(site: Site, path: str, log: Log) -> None:
    """A node's other routes answer like the reference model."""
    chance = world.chance
    offset, limit = int(chance.random() * len(log.entries)), chance.choice((1, 9, 500))
    query = Query(f"n={chance.randint(1, 9)}")
    backwards = [each for each in log.lines() if not offset or each["sequence_num"] < offset][::-1]
    asked = {
        f"?limit={limit}&offset={offset}": [each for each in log.lines() if each["sequence_num"] > offset],
        f"?limit={limit}&order=desc" + f"&offset={offset}" * bool(offset): backwards,
        f"/search?q={quote(query.q or '')}&limit={limit}&before=1": log.search(query._replace(before=1)),
        f"/raw?format=jsonl&q={quote(query.q or '')}": log.lines(query),
    }
    host = chance.choice(site.nodes).name
    for each, wanted in asked.items():
        status, answer = _answer(site, f"{path}/logs{each}", host)
        found = answer["logs"] if isinstance(answer, dict) and status == 200 else answer
        is_whole = isinstance(answer, list) or (status == 200 and not answer["cursor"])
        if status != 200 or found != (wanted if is_whole else wanted[: len(found)]):
            world.violation(f"{host}{path}/logs{each}: {status} {str(found)[:99]}, not {str(wanted)[:99]}")


def _judge_audit(site: Site, runner: Runner, pages: list[Seen]) -> None:
    """The audit counts each redacted line once."""
    counted = sum(each["count"] for each in _answer(site, f"{runner.path}/logs/redactions")[1]["redactions"])
    redacted = sum(each.message == REDACTED for each in pages)
    if counted != redacted:
        world.violation(f"{runner.job} has {redacted} redacted lines, and {counted} in the audit")


def _judge_notices(site: Site, runner: Runner, viewer: Viewer) -> None:
    """Everyone connected before and after a redaction was notified of it."""
    for each in runner.redactions:
        # By the next look at the job. A slow reader first reads what came earlier.
        told_at = each.done_at + 1 + site.shape.check + 15 * viewer.reads_for
        number = sum(at < each.asked_at for at in viewer.connected_at)
        was_there = any(seen.connection == number and seen.at - MONOTONIC > told_at for seen in viewer.seen)
        told = [(first, last) for connection, first, last in viewer.told if connection == number]
        # Of lines redacted by two requests concurrently, only the first request sends notices.
        concerned = [at for at in each.texts if sum(at in other.texts for other in runner.redactions) == 1]
        missed = [at for at in concerned if not any(first <= at <= last for first, last in told)]
        if number and was_there and missed and not isinstance(viewer, WaitViewer):
            world.violation(f"{viewer.name} was not told that {missed[:5]} of {viewer.job} were redacted")


def _judge_gaps(site: Site, viewer: Viewer, pages: list[Seen]) -> None:
    """No false gaps: lines reported to a viewer as unavailable are not in the log either.

    A lost store also loses its quota. Lines reported as lost until 25 s after the import can come back (ADR 40).
    """
    there = {each.number for each in pages if each.kind == LINE}
    for gap in (each for each in viewer.seen if each.kind == GAP):
        at, why = gap.at - MONOTONIC, gap.message
        if any(at < end + 25.0 and (why == "quota" or (why == "lost" and begin < at)) for begin, end in site.losses):
            continue
        if false := [number for number in range(gap.number, gap.last + 1) if number in there]:
            world.violation(f"{viewer.name} was told that {false[:5]} of {viewer.job} are {gap.message}: they exist")


def _judge_stream(site: Site, viewer: Viewer) -> None:
    """No state of a job follows a newer one. Without faults, lines arrive soon, unless bursts far exceed the ring."""
    is_soon = site.shape.ring[1] > 20 * site.shape.burst
    most = LATE_SECONDS + 36 * site.shape.late * (site.shape.burst > 100)  # 24 appends, of four messages each
    attempts: dict[int, int] = {}
    for seen in viewer.seen:
        if seen.kind == JOB and seen.state is not None:
            attempt = int(str(seen.state.get("attempt") or 0))
            # A store that has lost its last second may have lost an attempt.
            if attempt < attempts.get(seen.connection, 0) and not site.outages:
                world.violation(f"{viewer.name} was told of attempt {attempt} of {viewer.job} after a later one")
            attempts[seen.connection] = attempt
        elif seen.kind == LINE and viewer.query is None and not viewer.reads_for:
            printed = (seconds_of(seen.timestamp) or 0.0) - EPOCH
            late = seen.at - MONOTONIC - printed
            if is_soon and printed > site.quiet_since + SETTLE_SECONDS and late > most:
                world.violation(f"{viewer.name} got line {seen.number} of {viewer.job} after {late:.1f} s")
                return


def _judge_filtered(runner: Runner, viewer: Viewer, log: Log, *, may_have_more: bool) -> None:
    """A filtered viewer has what the model finds, once and in order, except what was redacted meanwhile.

    It can have more if the store has lost lines that nobody resends.
    """
    got = [each.number for each in viewer.seen if each.kind == LINE]
    matching = [each["sequence_num"] for each in log.lines(viewer.query or EVERYTHING)]
    redacted = {number for each in runner.redactions for number in each.texts}
    if got != sorted(set(got)):
        world.violation(f"{viewer.name} has lines of {runner.job} twice or out of order: {got}")
    wrong = (set(matching) - set(got) if may_have_more else set(matching) ^ set(got)) - redacted
    if wrong and not runner.lost_at > 0:
        world.violation(f"{viewer.name} of {runner.job}, {viewer.query}: lines {sorted(wrong)[:9]} are not as in /logs")


def _judge_redactions(runner: Runner, viewers: list[Viewer], pages: list[Seen]) -> None:
    """No redacted text reappears."""
    for redaction in runner.redactions:
        if redaction.done_at == float("inf"):
            continue
        for name, seen, connected in [("/logs", pages, []), *((v.name, v.seen, v.connected_at) for v in viewers)]:
            for each in seen:
                # Text already in transit to a viewer cannot be recalled.
                is_later = not connected or connected[each.connection - 1] > redaction.done_at
                is_concerned = each.kind == LINE and each.number in redaction.texts
                if is_concerned and is_later and each.message != REDACTED:
                    world.violation(f"{name} has line {each.number} of {runner.job}, which was redacted before")
                    return
        world.count("redactions")


def _unredacted(runner: Runner, seen: list[Seen]) -> list[Seen]:
    """What was received, with the texts from before the redactions."""
    texts = {at: text for each in reversed(runner.redactions) for at, text in each.texts.items() if text != REDACTED}
    # A stream that starts after the job's end first has its outcome.
    last = max((at for at, each in enumerate(seen) if each.kind == JOB), default=0)
    seen = [each for at, each in enumerate(seen) if each.kind != JOB or at == last]
    return [
        each._replace(message=texts.get(each.number, REDACTED))
        if (each.kind, each.message) == (LINE, REDACTED)
        else each
        for each in seen
    ]
