"""Checks the tests: plants one defect at a time in a copy of the tree, and reports which of them the tests find.

    python -m bench.mutants               # every defect
    python -m bench.mutants gap lease     # those whose names contain one of these words
    python -m bench.mutants --check       # only whether each defect can be planted

For each defect the tests of its package run first, and the whole default run only if none of them fails. A defect is a
text that is in its file exactly once, and what replaces it. Exits with 1 if a defect was not found, and
with 2 if one cannot be planted because the code has changed.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).parents[1]
#: Seconds for one run of pytest. A defect that makes tests hang counts as found.
TEST_SECONDS: Final = 900


class Defect(NamedTuple):
    """``old`` in the file ``chronoverse/<path>`` becomes ``new``. ``tests`` is where the tests of that file are."""

    name: str
    path: str
    old: str
    new: str
    tests: str


DEFECTS: Final = (
    # What a log is
    Defect("SSE frame without its last newline", "joblog/sse.py", 'return block + b"\\n"', "return block", "joblog"),
    Defect(
        "SSE: cursor block without its blank line",
        "joblog/sse.py",
        'b"id: %d\\n\\n" % id',
        'b"id: %d\\n" % id',
        "joblog live",
    ),
    Defect(
        "SSE decoder: a torn block moves the cursor",
        "joblog/sse.py",
        "            self._id = value\n",
        "            self._id = self.last_event_id = value\n",
        "joblog client",
    ),
    Defect("entry at the cursor is read again", "joblog/entries.py", "number <= cursor", "number < cursor", "joblog"),
    Defect("gap not named", "joblog/entries.py", "start > cursor + 1", "start > cursor + 2", "joblog"),
    Defect(
        "gap ends one line too late",
        "joblog/events.py",
        '"to": last, "reason"',
        '"to": last + 1, "reason"',
        "joblog web",
    ),
    Defect("plain frame: number not checked", "joblog/entries.py", 'entry_id != b"%d-0" % number or ', "", "joblog"),
    Defect(
        "frame: stderr shown as stdout",
        "joblog/entries.py",
        'b"stderr" if fields[5]',
        'b"stdout" if fields[5]',
        "joblog",
    ),
    Defect("number of 16 digits accepted", "joblog/model.py", "[0-9]{1,15}", "[0-9]{1,16}", "joblog"),
    Defect("time range: end excluded", "joblog/model.py", "time <= self.until", "time < self.until", "joblog web"),
    # Who may do what
    Defect("scope not checked", "auth/tokens.py", "if scope not in self.rights:", "if not self.rights:", "auth web"),
    Defect("star in the middle accepted", "auth/rights.py", 'if "*" in entry[:-1]:', "if False:", "auth web"),
    Defect(
        "scope of one group for the workflows of another",
        "auth/tokens.py",
        "workflow_id in self.rights[scope]:",
        "any(workflow_id in each for each in self.rights.values()):",
        "auth web",
    ),
    Defect(
        "rights of groups not read again", "auth/rights.py", "if seen != self._seen:", "if not self._seen:", "auth web"
    ),
    Defect("token valid at its expiry", "auth/tokens.py", "now >= expires_at", "now > expires_at", "auth"),
    Defect("audience not checked", "auth/tokens.py", "audience is not None and audience not in named", "False", "auth"),
    Defect("critical extension ignored", "auth/tokens.py", '"crit" in signed', '"critical" in signed', "auth"),
    # The store
    Defect("append: gap accepted", "store/scripts/append.lua", "first > last + 1", "first > last + 2", "store"),
    Defect(
        "append: repeated lines stored twice",
        "store/scripts/append.lua",
        "if number > last then",
        "if true then",
        "store",
    ),
    Defect(
        "append: lease not renewed", "store/scripts/append.lua", "redis.call('PEXPIRE', lease, ttl)\n", "\n", "store"
    ),
    Defect(
        "renew: lease not renewed",
        "store/scripts/renew.lua",
        "redis.call('PEXPIRE', lease, ARGV[3])\n",
        "\n",
        "store",
    ),
    Defect(
        "lease: token not compared", "store/scripts/common.lua", "redis.call('GET', lease) == token and", "", "store"
    ),
    Defect(
        "open: lease taken from a live runner", "store/scripts/open.lua", "return {'HELD'}", "holder = false", "store"
    ),
    Defect(
        "open: wrong next number",
        "store/scripts/open.lua",
        "{'OK', attempt, last + 1,",
        "{'OK', attempt, last,",
        "store",
    ),
    Defect(
        "finish: a repeated end of another attempt is accepted",
        "store/scripts/finish.lua",
        "ended[2] == ARGV[8] and tonumber(",
        "tonumber(",
        "store",
    ),
    Defect("open: hash may expire", "store/scripts/open.lua", "redis.call('PERSIST', job)\n", "\n", "store"),
    Defect(
        "chunk: gap in the archive accepted",
        "store/scripts/commit_chunk.lua",
        "archived + 1 == first",
        "true",
        "store archive",
    ),
    Defect(
        "chunk: lock not checked",
        "store/scripts/commit_chunk.lua",
        "~= ARGV[1] then return {'FENCED'} end\nlocal",
        "== '' then return {'FENCED'} end\nlocal",
        "store archive",
    ),
    Defect("job LOST without a grace period", "store/scripts/get_job.lua", "now < grace_end", "false", "store"),
    Defect(
        "foreign entry after deletion stays",
        "store/scripts/get_job.lua",
        "'UNLINK', log, job, lease",
        "'UNLINK', job",
        "store web",
    ),
    Defect(
        "end: an entry after a foreign end hides it",
        "store/scripts/get_job.lua",
        "'COUNT', LOOK_BACK",
        "'COUNT', 1",
        "store",
    ),
    Defect(
        "end: pages show what follows it",
        "history/tiered_log.py",
        "        if self.job.is_past_end(position):\n",
        "        if False:\n",
        "web",
    ),
    # The archive
    Defect(
        "archive reader: first line left out",
        "archive/reader.py",
        "start = number - frame.first",
        "start = number + 1 - frame.first",
        "archive",
    ),
    Defect(
        "archive reader: gap not named",
        "archive/reader.py",
        "found += missing_numbers(number - 1, frame.first, frame.first)",
        "pass",
        "archive history",
    ),
    Defect(
        "archive reader: frames after a hole",
        "archive/reader.py",
        " or found[0].first > number",
        "",
        "archive",
    ),
    Defect(
        "codec: frame's number not checked",
        "archive/codec.py",
        " and _number(decode_entry(lines[0])) == frame.first",
        "",
        "archive",
    ),
    Defect("archiver: swept too early", "archive/archiver.py", "sweep_at <= now", "True", "archive"),
    Defect(
        "archive state: next chunk one too far",
        "archive/chunk_writer.py",
        "first = state.archived + 1 if",
        "first = state.archived + 2 if",
        "archive",
    ),
    # Streams
    Defect(
        "feed: viewer inside a gap not noticed", "live/feed.py", ".first <= cursor)", ".first < cursor - 1)", "live"
    ),
    Defect(
        "feed: base one too low",
        "live/feed.py",
        "self.base = self._frames[count - 1].number",
        "self.base = self._frames[count - 1].number - 1",
        "live",
    ),
    Defect(
        "feed: positions are wrong after a full ring",
        "live/feed.py",
        "        self._first_position += count\n        self._dropped_bytes",
        "        self._dropped_bytes",
        "live",
    ),
    Defect(
        "tail: an answer that is too late is applied", "live/tail.py", "if feed.known != known:", "if False:", "live"
    ),
    Defect(
        "feed: a job that was fetched too early is stored",
        "live/feed.py",
        "if asked is not None and self.known != asked:",
        "if False:",
        "live",
    ),
    Defect(
        "tail: lines that only a replaced master counts are missing",
        "live/tail.py",
        " and store.get_job(job.ref) == job",
        "",
        "live",
    ),
    Defect(
        "tail: a log is closed before its last lines",
        "live/tail.py",
        "                return\n            _observe_delay",
        "                pass\n            _observe_delay",
        "live",
    ),
    Defect("viewer: token's expiry ignored", "live/viewer.py", "now >= self._expires_at", "False", "live web"),
    Defect(
        "tail starts one line too early",
        "web/routes/events.py",
        "max(job.last - tail,",
        "max(job.last - tail - 1,",
        "web",
    ),
    Defect(
        "download goes on in another log",
        "web/routes/raw.py",
        "            _check_same_log(deps, job)\n",
        "            pass\n",
        "web",
    ),
    Defect("token bucket never empty", "web/guards/rates.py", ", now) + sum(amounts) / self.rate", ", now)", "web"),
    # The runner and the client
    Defect("runner: lease not renewed", "runner/publisher.py", "            store.renew(attempt)\n", "", "runner"),
    Defect(
        "splitter: a long line loses a byte",
        "joblog/line_splitter.py",
        "position = newline + 1",
        "position = newline + 2",
        "runner",
    ),
    Defect(
        "mask: last byte of a buffered secret is published",
        "runner/capture/masking.py",
        "len(text) - len(part) + 1",
        "len(text) - len(part) + 2",
        "runner",
    ),
    Defect(
        "spool: rows of a file not checked",
        "runner/spool/spool_file.py",
        "            if not _is_plausible(each):\n",
        "            if not each:\n",
        "runner",
    ),
    Defect(
        "spool: lines that are under way are dropped",
        "runner/spool/spool.py",
        "(max(self._sent, self.acked), self.end)",
        "(self.acked, self.end)",
        "runner",
    ),
    Defect(
        "client: repeated number shown again",
        "client/follower.py",
        "number <= self.last_number",
        "number < self.last_number",
        "client",
    ),
    Defect(
        "client: last gap not named",
        "client/follower.py",
        "reached = end if item is None",
        "reached = None if item is None",
        "client cli",
    ),
)


def plant(defect: Defect, text: str) -> str | None:
    """The file with the defect, or None if ``defect.old`` is not in it exactly once."""
    return text.replace(defect.old, defect.new) if text.count(defect.old) == 1 else None


def tests_fail(tree: Path, *arguments: str) -> bool:
    """Whether a test fails in ``tree``."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *arguments]
    try:
        done = subprocess.run(command, cwd=tree, stdin=subprocess.DEVNULL, capture_output=True, timeout=TEST_SECONDS)
    except subprocess.TimeoutExpired:
        return True
    return done.returncode != 0


def find(defect: Defect, tree: Path, processes: str) -> str:
    """Plants the defect in ``tree``, runs tests, and removes it. Returns which tests found it, or ``NOT FOUND``."""
    path = tree / "chronoverse" / defect.path
    clean = path.read_text("utf-8")
    planted = plant(defect, clean)
    assert planted is not None
    path.write_text(planted, "utf-8")
    try:
        directories = [f"tests/{name}" for name in defect.tests.split()]
        if tests_fail(tree, "-n", processes, *directories):
            return "its package's tests"
        return "another package's tests" if tests_fail(tree) else "NOT FOUND"
    finally:
        path.write_text(clean, "utf-8")


def copy_tree(directory: Path) -> None:
    """Copies the tree to ``directory``, without files that git ignores."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    for name in filter(None, names.decode().split("\0")):
        if (ROOT / name).is_file():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            (directory / name).write_bytes((ROOT / name).read_bytes())


def main() -> int:
    """Runs what the arguments ask for."""
    parser = argparse.ArgumentParser(prog="python -m bench.mutants", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("words", nargs="*", help="only defects whose names contain one of these")
    parser.add_argument("--check", action="store_true", help="run no tests")
    parser.add_argument("--processes", default="2", help="processes for the tests of one package")
    asked = parser.parse_args()
    chosen = [each for each in DEFECTS if not asked.words or any(word in each.name for word in asked.words)]
    stale = [each for each in chosen if plant(each, (ROOT / "chronoverse" / each.path).read_text("utf-8")) is None]
    for each in stale:
        print(f"cannot be planted in {each.path}: {each.name}")
    if stale or asked.check:
        return 2 if stale else 0
    missed = 0
    with tempfile.TemporaryDirectory(prefix="cv-") as directory:
        copy_tree(Path(directory))
        for each in chosen:
            found = find(each, Path(directory), asked.processes)
            missed += found == "NOT FOUND"
            print(f"{each.name}: {found}", flush=True)
    print(f"{len(chosen) - missed} of {len(chosen)} defects found")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
