"""Publishing runs of lines and plain text."""

import gzip
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.support.secret_keys import GITHUB, MASKED_PEM, PEM
from tests.web.routes.foreign import TIMESTAMP, Foreign
from tests.web.routes.runner import Runner
from tests.web.routes.test_publish import messages

#: The service's default.
MAX_LINE = 65_536
LATER = "2026-03-03T10:00:06.000Z"


def run(*texts: Any, **more: Any) -> dict[str, Any]:
    return {"timestamp": TIMESTAMP, "stream": "stdout", "messages": list(texts), **more}


def publish(runner: Runner, first: int, *runs: Any, **more: Any) -> httpx.Response:
    body = {"token": runner.token, "attempt": runner.attempt, "first": first, "runs": list(runs), **more}
    return runner.post("logs", body)


def text(runner: Runner, client: httpx.Client, job: Foreign, body: bytes, **more: Any) -> httpx.Response:
    """Like ``curl --data-binary``. ``more`` overrides parameters and headers; None removes one."""
    usual = {"first": 1, "stream": "stderr", "Content-Type": "text/plain; charset=UTF-8"}
    usual |= {"Chronoverse-Attempt": runner.attempt, "Chronoverse-Token": runner.token}
    sent = {name: str(value) for name, value in {**usual, **more}.items() if value is not None}
    query = {name: sent.pop(name) for name in list(sent) if name.islower()}
    return client.post(f"{job.path}/logs", content=body, params=query, headers=sent)


def test_runs_are_lines_with_the_same_time_and_stream(client: httpx.Client, job: Foreign, opened: Runner) -> None:
    """Numbers continue across runs, and known lines are skipped."""
    runs = [run("one", "", "thr"), run("€", "five", timestamp=LATER, stream="stderr"), run()]
    runs[0]["partial"] = [2]
    for _ in range(2):
        assert publish(opened, 1, *runs).json() == {"next": 6}

    logs = client.get(f"{job.path}/logs").json()["logs"]
    assert [(line["sequence_num"], line["message"], line["stream"], line["timestamp"]) for line in logs] == [
        (1, "one", "stdout", TIMESTAMP),
        (2, "", "stdout", TIMESTAMP),
        (3, "thr", "stdout", TIMESTAMP),
        (4, "€", "stderr", LATER),
        (5, "five", "stderr", LATER),
    ]
    assert [line.get("partial") for line in logs] == [None, None, True, None, None]
    assert publish(opened, 9, run("nine")).json()["expected"] == 6


@pytest.mark.parametrize("form", ["runs", "lines", "text"])
def test_secrets_known_by_their_form_are_masked(client: httpx.Client, job: Foreign, opened: Runner, form: str) -> None:
    """However they are sent, including a private key over several lines, and a secret in two pieces of a line."""
    sent = ["fine", f"with {GITHUB} in it", *PEM, "fine"]
    if form == "runs":
        answer = publish(opened, 1, run(*sent[:6]), run(*sent[6:]))
    elif form == "lines":
        lines = [{"timestamp": TIMESTAMP, "stream": "stdout", "message": message} for message in sent]
        answer = opened.post("logs", {"token": opened.token, "attempt": opened.attempt, "first": 1, "lines": lines})
    else:
        answer = text(opened, client, job, "\n".join(sent).encode())
    assert answer.json() == {"next": len(sent) + 1}
    logs = client.get(f"{job.path}/logs").json()["logs"]
    assert [line["message"] for line in logs] == ["fine", "with [masked] in it", *MASKED_PEM, "fine"]
    if form != "text":
        pieces = [{"timestamp": TIMESTAMP, "stream": "stdout", "message": GITHUB[:9], "partial": True}]
        pieces += [{"timestamp": LATER, "stream": "stdout", "message": GITHUB[9:]}]
        opened.post("logs", {"token": opened.token, "attempt": opened.attempt, "first": len(sent) + 1, "lines": pieces})
        assert client.get(f"{job.path}/logs/raw").text.endswith("\nfine\n[masked][masked]\n")


def test_a_batch_has_at_most_5000_lines(client: httpx.Client, job: Foreign, opened: Runner) -> None:
    """Several appends, in order. One more line is rejected."""
    assert publish(opened, 1, *[run(*[str(number)] * 2500) for number in range(2)]).json() == {"next": 5001}
    found = [
        line
        for first in range(0, 5000, 1000)
        for line in client.get(f"{job.path}/logs", params={"limit": 1000, "offset": first}).json()["logs"]
    ]
    assert [line["message"] for line in found] == ["0"] * 2500 + ["1"] * 2500

    refused = publish(opened, 5001, run(*["x"] * 5001))
    assert (refused.status_code, "5000 lines" in refused.json()["detail"]) == (413, True)
    assert publish(opened, 5001, run("the next")).json() == {"next": 5002}


def test_a_message_can_have_a_replacement_for_each_byte(opened: Runner) -> None:
    """Runners split lines by their original bytes."""
    messages = "\ufffd" * MAX_LINE, "x" * MAX_LINE
    assert publish(opened, 1, run(*messages)).json() == {"next": 3}
    assert opened.append(3, *messages).json() == {"next": 5}


def test_plain_text_becomes_lines(client: httpx.Client, job: Foreign, opened: Runner) -> None:
    """The last one can lack a newline, a long one is split, and invalid UTF-8 is replaced."""
    assert text(opened, client, job, b"one\n\n" + b"x" * (MAX_LINE + 1) + b"\ncaf\xe9").json() == {"next": 6}
    packed = gzip.compress(b"six\n")
    assert text(opened, client, job, packed, first=6, stream=None, **{"Content-Encoding": "gzip"}).json() == {"next": 7}

    logs = client.get(f"{job.path}/logs").json()["logs"]
    assert [line["message"] for line in logs] == ["one", "", "x" * MAX_LINE, "x", "caf\ufffd", "six"]
    assert [line.get("partial") for line in logs] == [None, None, True, None, None, None]
    assert [line["stream"] for line in logs] == ["stderr"] * 5 + ["stdout"]
    assert text(opened, client, job, b"", first=7).json() == {"next": None}


@pytest.mark.parametrize(
    ("more", "status", "says"),
    [
        ({"first": None}, 400, "first: Missing data"),
        ({"first": "x"}, 400, "first: must be an integer"),
        ({"first": 0}, 400, "first: "),
        ({"stream": "both"}, 400, "stream: "),
        ({"lines": 5}, 400, "lines: Unknown field"),
        ({"Chronoverse-Attempt": None}, 400, "Chronoverse-Attempt: Missing data"),
        ({"Chronoverse-Token": "short"}, 400, "Chronoverse-Token: must be 32 to 128 hexadecimal digits"),
        ({"Chronoverse-Attempt": 2}, 409, "lease"),
        ({"first": 5}, 409, "the log's next line is 1"),
        ({"Content-Type": "text/plain; charset=latin-1"}, 415, "UTF-8"),
        ({"Content-Type": "text/html"}, 415, "application/json or text/plain"),
    ],
)
def test_bad_text_requests_are_refused(
    client: httpx.Client, job: Foreign, opened: Runner, more: dict[str, Any], status: int, says: str
) -> None:
    refused = text(opened, client, job, b"a\n", **more)

    assert (refused.status_code, says in refused.json()["detail"]) == (status, True), refused.text
    assert messages(client, job) == []


def test_a_text_has_at_most_5000_lines(
    client: httpx.Client, job: Foreign, opened: Runner, in_process: Callable[..., httpx.Client]
) -> None:
    """A longer one is rejected as a whole. Pieces of a long line count."""
    assert text(opened, client, job, b"x\n" * 5001).status_code == 413
    assert text(opened, in_process(max_line_bytes=256), job, b"x" * 256 * 5001).status_code == 413
    assert text(opened, client, job, b"x\n" * 5000).json() == {"next": 5001}
