"""No command prints control sequences from untrusted text."""

import os
import re
from pathlib import Path
from typing import Final

import orjson
import pytest

from tests.cli.conftest import Cli
from tests.support.commands import visible_commands
from tests.support.scripted import ScriptedService, answer, stream

#: Clears the screen, sets the title, and switches to right-to-left.
EVIL: Final = "\x1b[2J\x1b]0;title\x07\x9b5A\u202eevil"
#: Control characters that no command may print. Colors, tabs and newlines are allowed.
_CONTROL: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")

_JOB: Final = {
    "id": EVIL,
    "workflow_id": EVIL,
    "status": "FAILED",
    "attempt": 1,
    "created_at": EVIL,
    "started_at": EVIL,
    "finished_at": EVIL,
    "exit_code": 3,
    "lines": 1,
    "dropped": 0,
    "first_sequence_num": 1,
    "last_sequence_num": 1,
}
_LINE: Final = {"timestamp": EVIL, "message": EVIL, "sequence_num": 1, "stream": "stdout"}
_WATCH: Final = dict.fromkeys(("id", "on", "url", "state", "error", "seconds", "secret"), EVIL) | {
    "status": [EVIL],
    "label": {EVIL: EVIL},
    "same": [EVIL],
    "waiting": 1,
    "dropped": 1,
}
_SETTINGS: Final = dict.fromkeys(("retention_seconds", "job_bytes", "bytes_per_day"), EVIL)
_USUAL: Final = {"least": 1, "median": 1, "most": 1}
_REFUSAL: Final = {"title": EVIL, "status": 409, "detail": EVIL, "reason": "CLOSED"}


def json_answers(*documents: object, status: str = "200 OK") -> tuple[bytes, ...]:
    return tuple(answer(status, orjson.dumps(document)) for document in documents)


_SUMMARY: Final = {
    "job": _JOB,
    "compared_with": [EVIL],
    "new": {"count": 1, "first": [_LINE]},
    "errors": {"count": 1, "first": [_LINE | {"repeated": 2}]},
    "last": [_LINE | {"truncated": True}],
    "cause": {"from": 1, "to": 2, "line": _LINE, "kind": "error"},
    "complete": True,
    "scanned_to": 1,
    "truncated": True,
}
_LOST: Final = {"job": _JOB | {"status": "LOST", "exit_code": None}, "cause": None, "verdict": None}
_SEEN: Final = {"COMPLETED": 1, "without_shapes": 0}
_PLACE: Final = {"id": EVIL, "sequence_num": 1, "status": EVIL, "started_at": EVIL}

#: Calls of each command by a name that begins with the command's: the arguments, with ``URL`` for the service's, and
#: the service's answers.
CALLS: Final = {
    "logs": (("logs", "-t", "wf_1", "job_1"), json_answers(_JOB, {"logs": [_LINE], "cursor": None})),
    "logs of jobs": (
        ("logs", "-f", "wf_1", "--until-idle"),
        (
            stream(b"event: job\nid: 1\ndata: %b\n\n" % orjson.dumps(_JOB), whole=False),
            *json_answers({"jobs": [], "cursor": None}),
        ),
    ),
    "jobs": (("jobs", "wf_1"), json_answers({"jobs": [_JOB | {"status": EVIL}], "cursor": None})),
    "jobs as names": (("jobs", "wf_1", "-o", "name"), json_answers({"jobs": [_JOB], "cursor": None})),
    "workflows": (
        ("workflows",),
        json_answers({"workflows": [{"id": EVIL, "jobs": 1, "running": 0, "last_job_at": EVIL}], "cursor": None}),
    ),
    "wait": (
        ("wait", "wf_1", "job_1", "--for", "x"),
        json_answers({"outcome": "matched", "log": _LINE, "cursor": 1, "job": _JOB | {"status": "FAILED"}}),
    ),
    "summary": (("summary", "wf_1", "job_1"), json_answers(_SUMMARY)),
    "summary of a lost job": (("summary", "wf_1", "job_1"), json_answers(_SUMMARY | _LOST)),
    "summary as markdown": (("summary", "wf_1", "job_1", "-o", "markdown"), json_answers(_SUMMARY | _LOST)),
    "profile": (
        ("profile", "wf_1", "job_1"),
        json_answers(
            {
                "job": _JOB,
                "compared_with": [EVIL],
                "seconds": 1,
                "usual": _USUAL,
                "slower": [{"after": _LINE, "before": _LINE, "seconds": 1, "usual": _USUAL, "excess": 1}],
                "pauses": [{"after": None, "before": _LINE, "seconds": 1, "usual": None, "excess": None}],
                "running": {"silent_seconds": 1, "usual": _USUAL, "seconds_left": _USUAL},
                "complete": True,
                "scanned_to": 1,
            }
        ),
    ),
    "search": (
        ("search", "wf_1", "text"),
        json_answers({"jobs": [{"id": EVIL, "logs": [_LINE], "more": True, "error": EVIL}], "cursor": None}),
    ),
    "download": (("download", "wf_1", "job_1"), json_answers(_REFUSAL, status="409 Conflict")),
    "seen": (
        ("seen", "wf_1", "job_1", "1"),
        json_answers(_PLACE | {"looked_at": _SEEN, "seen": _SEEN, "first": _PLACE, "jobs": [_PLACE], "cursor": None}),
    ),
    "redact": (("redact", "wf_1", "job_1", "--lines", "1", "--yes"), json_answers(_REFUSAL, status="409 Conflict")),
    "delete": (("delete", "wf_1", "job_1", "--yes"), json_answers(_REFUSAL, status="409 Conflict")),
    "run": (
        ("run", "--workflow", "wf_1", "--server", "URL", "--", "true"),
        json_answers(_REFUSAL, status="409 Conflict"),
    ),
    "deliver": (("deliver", f"/nowhere/{EVIL}"), ()),
    "archive": (("archive", "--orphans"), ()),
    "serve": (("serve", "--bind", EVIL), ()),
    "mcp": (("mcp", "--max-wait", EVIL), ()),
    "audit": (("audit",), json_answers({"entries": [{"at": EVIL, "what": {"reason": EVIL}}], "cursor": None})),
    "completion": (("completion", EVIL), ()),
    "conformance": (("conformance", "--only", EVIL, "--", "{job}"), ()),
    "login": (
        ("login",),
        json_answers({"issuer": "https://id.example", "client_id": EVIL, "scopes": EVIL, "audience": EVIL}),
    ),
    "end": (("end", "wf_1", "job_1", "--exit-code", "1"), json_answers({"status": EVIL})),
    "open": (("open", "wf_1", EVIL), ()),
    "open the newest": (("open", "wf_1", "@latest"), json_answers({"jobs": [_JOB], "cursor": None})),
    "watch": (("watch", "wf_1", "main", "--on", "end", "--url", "https://a.example/"), json_answers(_WATCH)),
    "watches": (("watches", "wf_1"), json_answers({"watches": [_WATCH]})),
    "notify": (("notify", "--metrics", EVIL), ()),
    "collect": (("collect", EVIL), ()),
    "logout": (("logout",), ()),
    "token": (("token", "--workflow", EVIL), ()),
    "retention": (("retention", "wf_1"), json_answers(_SETTINGS)),
    "limits": (("limits", "wf_1"), json_answers(_SETTINGS)),
}
#: Commands that do not print their arguments.
SILENT: Final = {"notify", "open", "open the newest", "serve", "logout", "token", "limits", "retention"}


def test_every_command_is_called() -> None:
    """Every command has a row in the table above, except those that the service starts itself."""
    assert {name.split()[0] for name in CALLS} == set(visible_commands())


@pytest.mark.parametrize("name", CALLS)
def test_a_command_prints_no_control_sequences(cli: Cli, cli_process: Cli, tmp_path: Path, name: str) -> None:
    """Whether the text comes from the service, the archive, or the arguments."""
    orphan = tmp_path / "archive" / "wf_1" / "job_1" / EVIL
    orphan.parent.mkdir(parents=True)
    orphan.touch()
    os.utime(orphan, (0, 0))
    arguments, answers = CALLS[name]
    with ScriptedService(*answers or (None,)) as service:
        argv = [service.url if each == "URL" else each for each in arguments]
        # With the URL of a remote service, an archiver would refuse to use the embedded store.
        where = {} if name == "archive" else {"URL": service.url}
        # This command would replace the tests' own process.
        call = cli_process if name == "serve" else cli
        done = call(*argv, **where, TOKEN="a.b.c")

    printed = done.stdout + done.stderr
    assert ("evil" in printed) == (name not in SILENT)
    assert not _CONTROL.search(printed.replace("\x1b[0m", ""))
