"""Entries that a store can have, for Hypothesis."""

from hypothesis import strategies as st

from chronoverse.joblog.entries import RawEntry

stamps = st.sampled_from([b"2026-03-03T10:00:05.123Z", b"", b'"\\', b"\xff", "ü\u2028".encode()])
texts = st.sampled_from([b"", b"plain", b'"q" \\ \x00\n', b"\xff\xfe", "ü€😀".encode(), b"\xe2\x82"])
streams = st.sampled_from([b"stdout", b"stderr", b"other", b""])


@st.composite
def raw_fields(draw: st.DrawFn) -> list[bytes]:
    """Mostly what our own append writes."""
    plain = [b"timestamp", draw(stamps), b"message", draw(texts), b"stream", draw(streams)]
    odd: list[list[bytes]] = [
        plain[2:] + plain[:2],
        [*plain, b"partial", b"1"],
        plain[2:4],
        [b"note", b"nothing"],
        [b"timestamp", b"", b"message", b"", b"level", b"stdout"],
        [b"event", b"end", b"status", b"FAILED"],
    ]
    return draw(st.sampled_from([plain] * 12 + odd))


@st.composite
def raw_entries(draw: st.DrawFn) -> list[RawEntry]:
    """Entries that a store can have after line 5, mostly consecutive."""
    number, part = 5, 0
    found: list[RawEntry] = []
    for step in draw(
        st.lists(st.sampled_from([(1, 0)] * 12 + [(3, 0), (0, 1), (1, 2), (10**16, 0)]), min_size=1, max_size=12)
    ):
        number, part = number + step[0], step[1] + (part if step[0] == 0 else 0)
        found.append((b"%d-%d" % (number, part), draw(raw_fields())))
    return found
