"""Each option of each command that asks the service is in its request."""

import shlex
import time
from pathlib import Path
from typing import Final

import click
import pytest

from chronoverse.cli.common import moment
from chronoverse.joblog.model import seconds_of
from tests.cli.test_tables import JOB
from tests.support.commands import call_main, visible_commands
from tests.support.scripted import ScriptedService, answer, problem

SINCE, UNTIL = "2026-03-03T10:00:00.000Z", "2026-03-04T10:00:00.000Z"
LABELS: Final = "--label a=1 --label b=2"
AGAINST: Final = "--against-label a=1 --against-label b=2"
AT: Final = "/workflows/wf/jobs/j"
TIMES: Final = f"since={SINCE}&until={UNTIL}"
#: A command, and the target and body of its last request. ``{url}`` is the service's.
READS: Final = (
    (
        f"jobs wf --since 1d --status failed {LABELS} -n 5",
        "/workflows/wf/jobs?limit=5&status=FAILED&label=a=1&label=b=2",
    ),
    (f"jobs wf -w --status failed {LABELS} -n 5", "/workflows/wf/events?jobs=5&status=FAILED&label=a=1&label=b=2"),
    ("workflows --status failed", "/workflows?limit=1000&status=FAILED"),
    (
        f"search wf x --regex --stream stderr --status failed {LABELS} --since {SINCE} --until {UNTIL} -m 7",
        f"/workflows/wf/logs/search?q=x&per_job=7&regex=true&stream=stderr&status=FAILED&label=a=1&label=b=2&{TIMES}",
    ),
    ("logs wf j --offset 7 --stream stderr", f"{AT}/logs?limit=1000&order=asc&stream=stderr&offset=7"),
    ("logs wf j --lines 3-9", f"{AT}/logs?limit=1000&order=asc&offset=2"),
    ("logs wf j --tail 4", f"{AT}/logs?limit=1000&order=desc&offset=8"),
    (
        "logs wf j --search x --regex --stream stderr --context 2 --offset 4",
        f"{AT}/logs/search?limit=1000&q=x&regex=true&offset=4&stream=stderr&before=2&after=2",
    ),
    (f"logs wf j --since {SINCE}", f"{AT}/logs/search?q=^&regex=true&limit=1&since={SINCE}"),
    (f"logs wf j --until {UNTIL}", f"{AT}/logs/search?q=^&regex=true&limit=1&until={UNTIL}&order=desc"),
    (
        "logs wf j --new --against k --stream stderr --context 2",
        f"{AT}/logs/new?limit=1000&against=k&stream=stderr&before=2&after=2",
    ),
    (f"logs wf j --new {AGAINST}", f"{AT}/logs/new?limit=1000&against_label=a=1&against_label=b=2"),
    ("logs wf j -f --offset 7 --stream stderr --wait 4s", f"{AT}/events?offset=7&stream=stderr&wait=4"),
    ("logs -f --search x --regex --tail 4 {url}/ui/workflows/wf/jobs/j", f"{AT}/events?tail=4&q=x&regex=true"),
    (f"logs wf -f --status pending {LABELS}", "/workflows/wf/events?jobs=1000&status=PENDING&label=a=1&label=b=2"),
    (f"summary wf j {AGAINST} --bytes 5000", f"{AT}/summary?bytes=5000&against_label=a=1&against_label=b=2"),
    (f"profile wf j {AGAINST}", f"{AT}/profile?against_label=a=1&against_label=b=2"),
    (
        "wait wf j --for x --regex --stream stderr --offset 7 --timeout 9",
        f"{AT}/wait?q=x&regex=true&stream=stderr&offset=7&timeout=9",
    ),
    (
        "download wf j --format jsonl --stream stderr --search x --regex -",
        f"{AT}/logs/raw?format=jsonl&stream=stderr&q=x&regex=true",
    ),
    ("download --raw {url}/ui/workflows/wf/jobs/j -", f"{AT}/logs/raw?format=txt&control_sequences=true"),
    (f"seen wf j 7 --jobs 9 {LABELS}", f"{AT}/logs/7/history?jobs=9&label=a=1&label=b=2"),
    ("watches wf", "/workflows/wf/watches"),
    (f"audit --since {SINCE} --until {UNTIL}", f"/audit?limit=1000&{TIMES}"),
)
WRITES: Final = (
    ("redact wf j --lines 3-9 --reason why --yes", f"{AT}/logs/redact", b'{"from":3,"to":9,"reason":"why"}'),
    ("redact wf j --search x --regex --yes", f"{AT}/logs/redact", b'{"q":"x","regex":true}'),
    ("end wf j --exit-code 3", f"{AT}/end", b'{"status":"FAILED","exit_code":3}'),
    ("end wf j --status canceled", f"{AT}/end", b'{"status":"CANCELED","exit_code":null}'),
    ("retention wf 3d", "/workflows/wf/settings", b'{"retention_seconds":259200}'),
    ("limits wf --job-bytes 10 --day-bytes 20", "/workflows/wf/settings", b'{"job_bytes":10,"bytes_per_day":20}'),
    ("delete wf j --yes", AT, b""),
    (
        f"watch wf w --on silent --url https://a/ --status failed {LABELS} --same a --for 2m --secret whsec_x",
        "/workflows/wf/watches/w",
        b'{"on":"silent","url":"https://a/","same":["a"],"seconds":120,"secret":"whsec_x","status":["FAILED"],'
        b'"label":{"a":"1","b":"2"}}',
    ),
    ("watch wf w --test", "/workflows/wf/watches/w/test", b""),
    ("watch wf w --delete", "/workflows/wf/watches/w", b""),
)
#: Options of the output, of several requests, or of other tests.
OTHERS: Final = {"output", "raw", "numbers", "timestamps", "full", "color", "yes", "all_jobs", "until_idle"}


@pytest.mark.parametrize(("command", "target", "body"), [*((*each, b"") for each in READS), *WRITES])
def test_each_option_is_in_the_request(command: str, target: str, body: bytes, tmp_path: Path) -> None:
    refused = problem("400 Bad Request", "no")
    # ``logs`` first asks for the job, or for the one to compare with; others ask for the present settings.
    first = (f"{AT}/logs?", f"{AT}/logs/search?q=^", "/workflows/wf/settings")
    asks_first = target.startswith(first) or "against k" in command
    asked = b"{}" if target.endswith("settings") else JOB
    with ScriptedService(*[answer("200 OK", asked)] * asks_first, refused) as service:
        environ = {"CHRONOVERSE_URL": service.url, "CHRONOVERSE_TOKEN": "t", "CHRONOVERSE_DATA_DIR": str(tmp_path)}
        done = call_main(*shlex.split(command.format(url=service.url)), environ=environ)
    assert [(each.target, each.body) for each in service.requests[asks_first:]] == [(target, body)], done.stderr
    assert done.returncode == 65


@pytest.mark.parametrize(("age", "seconds"), [("45s", 45), ("5m", 300), ("1h30m", 5_400), ("2d", 172_800)])
def test_an_age_is_a_time_before_now(age: str, seconds: int) -> None:
    before = time.time()
    assert before - 1 < (seconds_of(moment(age)) or 0) + seconds <= time.time()


def test_the_table_has_each_option() -> None:
    for name in {row[0].split()[0] for row in (*READS, *WRITES)}:
        given = {word for row in (*READS, *WRITES) if row[0].split()[0] == name for word in row[0].split()}
        for option in visible_commands()[name].params:
            known = isinstance(option, click.Argument) or str(option.name) in OTHERS
            assert known or given & {*option.opts}, (name, option.opts)
