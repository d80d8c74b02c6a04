"""``python -m tests.simulation.planted``: plants timing defects in a copy of the code, one at a time.

It prints which of them the simulation finds, with which seed, after how many seconds of CPU.
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Final

from tests.simulation.plan import Simulator, small

ROOT: Final = Path(__file__).resolve().parents[2]

# fmt: off
#: What replaces what in a file below ``chronoverse/``, and the defect that this is a part of.
CHANGES: Final[tuple[tuple[str, str, str, str], ...]] = (
    ("Feed.known ignored", "live/feed.py", "if asked is not None and self.known != asked:", "if False:"),
    ("Feed.known ignored", "live/tail.py", "                if feed.known != known:", "                if False:"),
    ("no second read of the job before a gap is named", "history/tiered_log.py",
     "before, job = job, get_job()", "before = job = known or get_job()"),
    ("late lines not asked for again", "live/tail.py",
     "is_late = feed.job is not None and feed.job.last > feed.cursor", "is_late = False"),
    ("a scan before a redaction cached", "live/replay_cache.py",
     "        if asked[0] != self._invalidated:\n            return\n", ""),
    ("the scan server not told of a redaction", "live/replay_cache.py",
     "is_redacted=is_redacted(),", "is_redacted=False,"),
    ("the safe index not lowered", "runner/spool/spool.py", "            self.safe = min(self.safe, index)\n", ""),
    ("a full spool drops sent lines", "runner/spool/spool.py",
     "(max(self._sent, self.acked), self.end)", "(self.acked, self.end)"),
    ("an import that does not wait for a runner", "archive/importing.py",
     "None if manifest else wait_seconds, redactions", "None if manifest else 0.001, redactions"),
    ("the lease renewed at its end", "runner/publisher.py",
     "self._renew_seconds = self.lease_seconds / 3", "self._renew_seconds = self.lease_seconds"),
    ("the chunk committed before its object is confirmed", "archive/job_objects.py",
     "            self.objects.put(chunk.name, data)\n"
     "            if text_sha256(chunk, self.objects.get(chunk.name)) != chunk.sha256:\n"
     '                raise ArchiveDamaged(f"{chunk.name} failed read-back verification")\n            yield chunk\n',
     "            yield chunk\n            self.objects.put(chunk.name, data)\n"),
    ("hot lines trimmed before the chunk is committed", "store/scripts/commit_chunk.lua",
     "if is_deleted(log)", "if trim > 0 then trim_log(log, math.min(trim, last)) end\nif is_deleted(log)"),
    ("the end written before the last append is answered", "runner/publisher.py",
     "        elif self._unanswered:\n            self._append(store, attempt)\n",
     "        elif self._unanswered and self._result is not None:\n"
     "            self.spool.acknowledge(self.spool.end)\n            self._finish(store, attempt, self._result)\n"
     "        elif self._unanswered:\n            self._append(store, attempt)\n"),
    # Otherwise the store rejects such an end.
    ("the end written before the last append is answered", "store/scripts/finish.lua",
     "tonumber(ARGV[7]) ~= last + 1 then return {'GAP'", "tonumber(ARGV[7]) < 1 then return {'GAP'"),
    ("a wake-up before the waiter is registered", "live/viewer.py",
     "            woken.clear()\n            chunk = self.next()\n", "            chunk = self.next()\n"),
    ("a wake-up before the waiter is registered", "live/viewer.py",
     "            elif chunk is None and not self.done:\n                woken.wait(",
     "            elif chunk is None and not self.done:\n                self._tail._yield_to_loop()\n"
     "                woken.clear()\n                woken.wait("),
    ("the redaction count taken from a stale manifest", "archive/redaction.py",
     "self._redactions = max(job.redactions, redactions_in(names))", "self._redactions = 0"),
    ("a stream that ends keeps its job watched", "live/tail.py", "            feed.viewer_count -= 1\n", ""),
    ("an error ends a thread of the tail", "live/tail.py",
     "        return False\n    return True", "        raise\n    return True"),
    ("a filtered slice given to all", "live/feed.py",
     "found = self._slices.get((position, line_filter))", "found = self._slices.get((position, None))"),
    ("a stream resumed one line too late", "web/routes/events.py",
     'last_event_id(environ.get("HTTP_LAST_EVENT_ID"))',
     'last_event_id(environ.get("HTTP_LAST_EVENT_ID"))\n        after = given = given + 1 if given else given'),
    ("a lost end not written again", "runner/publisher.py",
     "            self._phase = _Phase.OPEN\n            self.spool.acknow", "            self.spool.acknow"),
    ("a lease not renewed without memory", "store/scripts/renew.lua",
     "redis.call('PEXPIRE', lease, ARGV[3])", "redis.call('SET', lease, ARGV[1], 'PX', ARGV[3])"),
    ("lines of a dead runner taken for another's", "runner/publisher.py",
     "if last is self._earlier_attempt and", "if False and"),
    ("a line is safe before a replica has it", "store/durability.py",
     "(reply if replicated else reply[0]) >= 1", "(reply if replicated else reply[0]) >= 0"),
    ("a workflow's stream resumed one change too late", "web/routes/workflow_events.py",
     "after = given if given is not None and is_kept", "after = given + 1 if given is not None and is_kept"),
    ("a token refused while the issuer is away", "auth/jwks.py",
     "        if self._record.failed:\n", "        if False:\n"),
    ("an old snapshot of a workflow", "live/workflow_viewer.py",
     "frames, cursor = self.jobs(", "frames, _ = self.jobs("),
    ("a line stored over the quota", "store/scripts/common.lua", "if used > room", "if used - size > room"),
    ("a redaction empties a log over its quota", "store/scripts/common.lua", " or '0-1'", " or '0-0'"),
)
# fmt: on
DEFECTS: Final = tuple(dict.fromkeys(defect for defect, *_ in CHANGES))


def plant(defect: str, tree: Path) -> None:
    """Plants the defect in a copy of the code below ``tree``. Raises ValueError when the code has changed."""
    for _, file, old, new in (each for each in CHANGES if each[0] == defect):
        path = tree / "chronoverse" / file
        text = path.read_text("utf-8")
        if text.count(old) != 1:
            raise ValueError(f"{file} has {text.count(old)} times {old!r}")
        path.write_text(text.replace(old, new), "utf-8")


def copy_tree(to: Path) -> None:
    """Copies what the simulation runs."""
    ignored = shutil.ignore_patterns("__pycache__", "static")
    for each in ("chronoverse", "tests/simulation", "tests/faults", "tests/support", "tests/web/routes"):
        shutil.copytree(ROOT / each, to / each, ignore=ignored)
    (to / "chronoverse/web/static").symlink_to(ROOT / "chronoverse/web/static")


def find(defect: str, seconds: float, first: int = 1) -> tuple[int, float, str]:
    """Returns the seed that finds the defect, or 0; after how many seconds of CPU; and what it found."""
    with tempfile.TemporaryDirectory(prefix="planted-") as directory:
        copy_tree(Path(directory))
        plant(defect, Path(directory))
        taken, seed = 0.0, first
        with Simulator(Path(directory)) as simulator:
            while taken < seconds:
                result = simulator.run(small(seed))
                taken += result.cpu
                if result.violations:
                    return seed, taken, result.violations[0]
                seed += 1
    return 0, taken, "nothing"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.planted", description=__doc__)
    parser.add_argument("names", nargs="*", help="Parts of the names of defects; all by default.")
    parser.add_argument("--seconds", type=float, default=600.0, help="CPU for each, at most.")
    args = parser.parse_args()
    missed = 0
    for defect in DEFECTS:
        if not args.names or any(name in defect for name in args.names):
            seed, taken, what = find(defect, args.seconds)
            missed += not seed
            where = f"seed {seed}" if seed else "NOT FOUND"
            print(f"{defect}: {where} after {taken:.0f} s: {what[:160]}", flush=True)
    return missed


if __name__ == "__main__":
    sys.exit(main())
