"""An agent: a script that reads answers like a model. It finds out why ten jobs of real tools failed."""

import re
from collections.abc import Iterator
from typing import Any, Final

from chronoverse.joblog.model import JobRef, Line, Status
from chronoverse.store import Store
from tests.cli.mcp_client import McpProgram
from tests.joblog.test_shapes_of_real_logs import FAILURES, planted, read_run

TIME: Final = "2026-03-03T10:00:05.123Z"
#: A line that reveals the failure.
CAUSES: Final = {
    "pytest": r" FAILED |^E  ",
    "npm": "AssertionError|!==",
    "make": r"module_37\.c:[78]:[0-9]+: error:",
    "pip": r"fatal error: missing_header\.h",
    "java": r" ERROR .* failed|OrderException: ",
    "journal": r"\[error\] .*Connection refused",
}
#: Logs whose failure is moved to after six tenths of a good run, so that it is elsewhere.
MOVED: Final = ("pytest", "npm", "make", "pip")
#: A model's token has about four bytes.
MAX_BYTES: Final = 4 * 4_000


def failed_runs() -> Iterator[tuple[str, str, list[str]]]:
    """A name, the tool, and the lines of ten failed runs."""
    for kind in FAILURES:
        yield kind, kind, read_run(kind, "failed")
    for kind in MOVED:
        good, failed = read_run(kind, "further"), read_run(kind, "failed")
        place = len(good) * 6 // 10
        yield f"{kind}-moved", kind, [*good[:place], *(failed[index] for index in planted(kind, failed)), *good[place:]]


def publish(store: Store, job: JobRef, messages: list[str], status: Status) -> None:
    """Writes the log of a finished run."""
    attempt = store.open(job, "a" * 32)
    lines = [Line(number, TIME, text, "stdout") for number, text in enumerate(messages, 1)]
    for start in range(0, len(lines), 500):
        attempt = attempt._replace(next=store.append(attempt, lines[start : start + 500]))
    store.finish(attempt, status, 1 if status is Status.FAILED else 0, 0, len(lines) + 1)


class Agent:
    """Finds the failing line of a workflow's most recently failed job, guided only by answers."""

    def __init__(self, program: McpProgram) -> None:
        self._program = program
        #: Size of all answers in bytes.
        self.bytes = 0

    def _ask(self, tool: str, **arguments: Any) -> Any:
        answer = self._program.answer(tool, **arguments)
        assert not answer.is_error, answer.text
        self.bytes += answer.size
        return answer.json

    def find(self, workflow: str) -> tuple[int, str]:
        """The number and text of the line that reveals the failure."""
        (job,) = self._ask("list_jobs", workflow_id=workflow, status="FAILED", limit=1)["jobs"]
        named = {"workflow_id": workflow, "job_id": job["id"]}
        before = self.bytes
        while not (summary := self._ask("summary", **named, max_bytes=6_000))["complete"]:
            # On a busy machine, the first answer is partial; the next one continues and replaces it.
            self.bytes = before
        suspect = summary["cause"]["line"]["sequence_num"]
        around = self._ask("read_lines", **named, first=max(suspect - 3, 1), last=suspect + 8, max_bytes=6_000)
        lines = [line for line in around["logs"] if line["sequence_num"] >= suspect]
        best = max(lines, key=lambda line: bool(re.search("(?i)error|fail|exception", line["message"])))
        return best["sequence_num"], best["message"]
