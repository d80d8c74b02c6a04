"""The spool: what is put in comes out in order, until it is acknowledged, and some of it after."""

import threading
import time

from chronoverse.cutter import Block
from chronoverse.spool import BATCH_LINES, BLOCK_OVERHEAD_BYTES, Spool

NOW = "2026-03-03T10:00:05.123Z"


def block(*messages: str, stream: str = "stdout", partial: bool = False) -> Block:
    return Block(stream, NOW, "\n".join(messages).encode(), len(messages), partial)


def drain(spool: Spool, base: int = 1) -> list[str]:
    """Takes and acknowledges all there is."""
    messages: list[str] = []
    while lines := spool.take(base):
        assert lines[0].sequence_num == base + spool.acked
        messages += [line.message for line in lines]
        spool.acknowledge(spool.acked + len(lines))
    return messages


def test_a_batch_has_at_most_its_lines_and_they_are_numbered_from_the_base() -> None:
    """However the blocks are cut."""
    spool = Spool()
    for start in range(0, 1200, 300):
        spool.put(block(*(str(number) for number in range(start, start + 300))))
    lines = spool.take(100)
    assert [line.message for line in lines] == [str(number) for number in range(BATCH_LINES)]
    assert [line.sequence_num for line in lines] == list(range(100, 100 + BATCH_LINES))


def test_a_batch_has_at_most_about_its_bytes() -> None:
    """Long lines make it shorter, but there is always one."""
    spool = Spool()
    for _ in range(4):
        spool.put(block("x" * 600_000))
    assert [len(spool.take(1))] == [2]


def test_what_is_not_acknowledged_is_taken_again() -> None:
    """An append whose answer was lost is repeated."""
    spool = Spool()
    spool.put(block("a", "b", "c"))
    assert spool.take(1) == spool.take(1)
    spool.acknowledge(2)
    assert [line.message for line in spool.take(1)] == ["c"]


def test_acknowledged_lines_can_be_had_again() -> None:
    """Also from the middle of a block."""
    spool = Spool()
    spool.put(block("a", "b", "c"))
    spool.put(block("d"))
    assert drain(spool) == ["a", "b", "c", "d"]
    assert spool.rewind(1)
    assert drain(spool) == ["b", "c", "d"]


def test_acknowledged_lines_are_kept_up_to_a_bound() -> None:
    """Beyond it a rewind is refused, and changes nothing."""
    spool = Spool(keep_bytes=2 * (1 + BLOCK_OVERHEAD_BYTES))
    for message in "abcd":
        spool.put(block(message))
    drain(spool)
    assert not spool.rewind(1)
    assert (spool.first, spool.acked) == (2, 4)
    assert spool.rewind(2)
    assert drain(spool) == ["c", "d"]


def test_lines_that_find_no_room_are_counted_and_marked_in_place() -> None:
    """It takes lines again only when half of it is free, so that there is one marker."""
    spool = Spool(max_bytes=4 * (1 + BLOCK_OVERHEAD_BYTES))
    for message in "abcdefg":
        spool.put(block(message))
    spool.acknowledge(1)
    spool.put(block("h"))
    assert drain(spool) == ["b", "c", "d"]
    spool.put(block("i"))
    assert drain(spool) == ["[chronoverse] 4 lines dropped: the store was away", "i"]
    assert spool.dropped == 4


def test_lines_dropped_last_are_marked_at_the_end() -> None:
    """Nothing may come after them."""
    spool = Spool(max_bytes=1 + BLOCK_OVERHEAD_BYTES)
    for message in "ab":
        spool.put(block(message))
    spool.close(NOW)
    assert drain(spool) == ["a", "[chronoverse] 1 lines dropped: the store was away"]


def test_a_line_whose_end_was_dropped_is_closed_before_the_marker() -> None:
    """Or the marker would be read as a piece of it."""
    spool = Spool(max_bytes=5 + BLOCK_OVERHEAD_BYTES)
    spool.put(block("piece", stream="stderr", partial=True))
    spool.put(block("rest", stream="stderr"))
    spool.close(NOW)
    lines = spool.take(1)
    assert [(line.message, line.partial) for line in lines[:2]] == [("piece", True), ("", False)]
    assert "1 lines dropped" in lines[2].message


def test_waiting_ends_with_the_lines_the_close_or_the_time() -> None:
    """Whichever comes first; then it says whether there is anything."""
    spool = Spool()
    assert not spool.wait(1, 0.01)
    threading.Timer(0.05, spool.put, [block("a")]).start()
    assert spool.wait(1, 10)
    threading.Timer(0.05, spool.close, [NOW]).start()
    started = time.monotonic()
    assert spool.wait(BATCH_LINES, 10)
    assert time.monotonic() - started < 5


def test_an_abandoned_spool_only_counts() -> None:
    """Nobody will take its lines, so it keeps none."""
    spool = Spool()
    spool.put(block("a"))
    spool.abandon()
    spool.put(block("b", "c"))
    assert (spool.take(1), spool.end - spool.acked) == ([], 3)
