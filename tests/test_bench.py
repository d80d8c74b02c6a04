"""The benchmark itself: its load generator reports every fault of a server."""

import contextlib
import multiprocessing
import select
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import live, stored
from bench.check import Stream
from bench.load import Load, Report, Target, ViewerLoop
from bench.measure import live as run_live
from bench.peers.floor import Floor
from bench.peers.ours import LOG, NOISE
from bench.peers.wire import line_json
from bench.produce import Plan
from bench.reference import Grammar, Reference, Wrong, message
from bench.report import index, table, write
from bench.scenario import Outcome, verdict

pytestmark = pytest.mark.long

LINES = 300
GRAMMAR = Grammar(LOG, NOISE)
HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
HELLO = b'event: connected\ndata: {"status":"connected"}\nretry: 2417\n\nevent: job\ndata: {"status":"RUNNING"}\n\n'
GOODBYE = b'event: job\ndata: {"status":"COMPLETED"}\n\nevent: end\ndata: {"status":"stream_ended"}\nid: 301\n\n'


def frame(number: int, job: int = 0) -> bytes:
    """The SSE block of a line."""
    return b"event: log\ndata: %b\nid: %d\n\n" % (line_json(message(1000 + number, job, number), number), number)


def frames() -> list[bytes]:
    """The SSE blocks of all lines."""
    return [frame(number) for number in range(1, LINES + 1)]


def lost(blocks: list[bytes]) -> None:
    del blocks[150]


def doubled(blocks: list[bytes]) -> None:
    blocks.insert(150, blocks[150])


def doubled_last(blocks: list[bytes]) -> None:
    blocks.append(blocks[-1])


def reordered(blocks: list[bytes]) -> None:
    blocks[150], blocks[151] = blocks[151], blocks[150]


def changed(blocks: list[bytes]) -> None:
    blocks[150] = blocks[150].replace(b"some text", b"some tent")


def renumbered(blocks: list[bytes]) -> None:
    blocks[150] = blocks[150].replace(b"id: 151\n", b"id: 152\n")


def of_another_job(blocks: list[bytes]) -> None:
    blocks[150] = frame(151, job=1)


def torn(blocks: list[bytes]) -> None:
    blocks[150] = blocks[150][:-1]


#: The load generator itself never runs under gevent.
needs_epoll = pytest.mark.skipif(not hasattr(select, "epoll"), reason="no epoll: not Linux, or patched by gevent")

FAULTS = [lost, doubled, doubled_last, reordered, changed, renumbered, of_another_job, torn]


def response(blocks: list[bytes], chunk: int) -> bytes:
    """A complete response in chunks of ``chunk`` bytes, with a heartbeat in the middle."""
    body = HELLO + b"".join(blocks[:100]) + b":\n" + b"".join(blocks[100:]) + GOODBYE
    parts = [body[start : start + chunk] for start in range(0, len(body), chunk)]
    return HEAD + b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def send(sock: socket.socket, sent: bytes) -> None:
    """Sends ``sent``, unless the viewer disconnects before the end."""
    with contextlib.suppress(OSError):
        sock.sendall(sent)
        sock.shutdown(socket.SHUT_WR)


def watch(reference: Reference, sent: bytes, size: int) -> Stream:
    """A viewer that receives ``sent`` through a socket, ``size`` bytes at a time."""
    stream, buffer = Stream(reference, 0), bytearray(1 << 16)
    with memoryview(buffer) as view:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            writer = threading.Thread(target=send, args=(theirs, sent))
            writer.start()
            try:
                while count := ours.recv_into(view[:size]):
                    stream.feed(buffer, view, count)
            finally:
                ours.close()
                writer.join(5)
    return stream


@pytest.mark.parametrize(("chunk", "size"), [(1 << 20, 60_000), (231, 4096), (100, 7)])
def test_correct_streams_pass_however_they_are_cut(chunk: int, size: int) -> None:
    """Differences in chunks, heartbeats and other events are no faults."""
    reference = Reference(GRAMMAR, 0, 0, LINES)

    streams = [watch(reference, response(frames(), size), size) for size in (chunk, 1000, chunk)]

    assert [(stream.lines, stream.closed) for stream in streams] == [(LINES, True)] * 3
    assert {stream.position for stream in streams} == {reference.goal}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_first_viewer_is_checked_line_by_line(fault: object) -> None:
    """There are no bytes yet to compare it with, so each line is parsed and checked."""
    blocks = frames()
    assert callable(fault)
    fault(blocks)

    with pytest.raises(Wrong):
        watch(Reference(GRAMMAR, 0, 0, LINES), response(blocks, 5000), 4096)


@pytest.mark.parametrize("fault", FAULTS)
def test_the_other_viewers_are_compared_with_the_first(fault: object) -> None:
    """A fault in one viewer's stream is found, and does not change the reference."""
    reference, blocks = Reference(GRAMMAR, 0, 0, LINES), frames()
    watch(reference, response(frames(), 5000), 4096)
    assert callable(fault)
    fault(blocks)

    with pytest.raises(Wrong):
        watch(reference, response(blocks, 5000), 4096)

    assert watch(reference, response(frames(), 900), 4096).lines == LINES


@contextlib.contextmanager
def canned(answers: list[bytes]) -> Iterator[int]:
    """A server that gives one of ``answers`` to each connection, in turn. Yields its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            for answer in answers:
                with listener.accept()[0] as client:
                    client.recv(4096)
                    client.sendall(answer)

        server = threading.Thread(target=serve, daemon=True)
        server.start()
        yield listener.getsockname()[1]
        server.join(5)


@needs_epoll
def test_a_report_counts_faults() -> None:
    """One viewer gets everything, one loses a line, one is refused and one is cut off."""
    bad = frames()
    lost(bad)
    whole = response(frames(), 5000)
    answers = [whole, response(bad, 5000), b"HTTP/1.1 503 Service Unavailable\r\n\r\n", whole[:20_000]]
    ours, theirs = multiprocessing.Pipe()
    with canned(answers) as port, ours, theirs:
        load = Load([Target("127.0.0.1", port, "/")], GRAMMAR, 4, LINES, 10, window=1)
        report: Report = ViewerLoop(load, theirs).run()
        words = [ours.recv()[0] for _ in range(3)]

    assert (report.complete, report.wrong, report.refused, report.cut) == (1, 1, 1, 1)
    assert any("line 151" in story for story in report.stories)
    assert words == ["begun", "ready", "done"]


@needs_epoll
def test_a_round_is_measured_and_reported() -> None:
    """Lines go from the producer through a server to the generator, and results into the table and verdict."""
    side = next(side for side in live.EVERYBODY if side.peer is Floor)
    with Floor() as peer:
        load = Load([peer.target(0)], peer.grammar, 20, 100, 20, warm=20)
        found = run_live(peer, load, Plan(100, rate=400, batch=50))
    outcome = Outcome(next(each for each in live.SCENARIOS if each.name == "paced"), [{side.name: found}] * 2)

    assert (found["complete"], found["deliveries"], found["wrong"]) == (20, 2000, 0)
    assert 0 < found["p50_ms"] <= found["p99_ms"] <= found["max_ms"]
    assert any(row.startswith("| floor | ") for row in table(outcome))
    assert sum("not measured" in sentence for sentence in verdict(outcome)) == 2


def test_every_scenario_has_its_own_name() -> None:
    """Its first side is the service, with which all others are compared."""
    scenarios = [*live.SCENARIOS, *stored.SCENARIOS]

    assert len({each.name for each in scenarios}) == len(scenarios)
    assert all(each.sides[0].name.startswith("chronoverse") for each in scenarios)


def test_one_table_has_all_scenarios(tmp_path: Path) -> None:
    """The best peer, our ratio to it, the generator's load, and another commit."""
    machine = {"cores": 2, "cpu": "x", "memory_mb": 1, "kernel": "6", "python": "3", "quick": False}
    found = {
        "chronoverse": {"deliveries_per_s": 600.0, "share": 0.5},
        "nchan": {"deliveries_per_s": 200.0, "share": 0.9},
        "flask-sse": {"deliveries_per_s": 100.0, "share": 1.0},
        "floor": {"deliveries_per_s": 900.0, "share": 0.1},
    }
    named = {each.name: each for each in live.SCENARIOS}
    for commit, name in (("a1", "burst"), ("b2", "paced")):
        write(Outcome(named[name], [found]), {**machine, "commit": commit}, "2026-03-03", tmp_path)

    lines = index(tmp_path, ["burst", "paced"])

    assert lines[0] == "All scenarios (2026-03-03, a1):"
    row = "| burst: lines delivered, per second | 600 | nchan | 200 | 3 | 90% |"
    assert [each for each in lines if "burst" in each] == [row]
    assert row in (tmp_path / "README.md").read_text()
