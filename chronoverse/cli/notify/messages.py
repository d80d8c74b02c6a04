"""The text and data of messages. Pure."""

import re
from collections.abc import Mapping
from typing import Any, Final

import orjson

from chronoverse.cli.summary import end_text
from chronoverse.joblog.model import Job, Status, iso_or_none
from chronoverse.joblog.terminal import sanitize
from chronoverse.joblog.watches import TYPES, Event, Watch

_ENDED: Final = {
    Status.COMPLETED: "completed",
    Status.FAILED: "failed",
    Status.CANCELED: "was canceled",
    Status.LOST: "was lost",
}
#: The beginnings of mentions that notify a whole channel, and of the targets of Markdown links. To disable these, an
#: invisible space is inserted after the beginning.
_MARKUP: Final = re.compile(r"@(?=(?:all|channel|everyone|here)(?![^\W_]))|\](?=\()", re.IGNORECASE)


def message(
    watch: Watch, event: Event, job: Job | None, before: Job | None, summary: Mapping[str, Any], base_url: str
) -> bytes:
    """The message as JSON. ``summary`` can be empty. ``job`` is None for a test in a workflow without jobs."""
    cause, page = summary.get("cause"), f"{base_url}/ui/workflows/{watch.workflow_id}"
    line = cause["line"]["sequence_num"] if cause else event.last
    if job is not None:
        page += f"/jobs/{job.ref.job_id}" + (f"#L{line}" if line else "")
    text = f"{watch.workflow_id} {_said(watch, event, job, before)}"
    if why := (summary and end_text(summary)) or (cause and cause["line"]["message"]):
        text += f": {_plain(why)}"
    if line:
        text += f" (line {line})"
    is_test = event.name.startswith("test.")
    return orjson.dumps(
        {
            "type": TYPES[watch.on],
            "timestamp": iso_or_none(event.queued_ms),
            "data": {
                "watch": watch.id,
                "job": job and job.to_json(),
                "before": before and before.to_json(),
                "cause": cause,
                "verdict": summary.get("verdict"),
                "url": page,
            },
            "text": f"{f'Test of the watch {watch.id}: ' if is_test else ''}{text} {page}",
        }
    )


def _said(watch: Watch, event: Event, job: Job | None, before: Job | None) -> str:
    if job is None:
        return "has no jobs"
    if event.name.startswith("silent."):
        return f"{job.ref.job_id} has printed nothing for {watch.seconds} s"
    if event.before is None or before is None:
        return f"{job.ref.job_id} {_ENDED.get(job.status, 'runs')}"
    labels = dict(job.labels)
    where = "".join(f"{_plain(key)}={_plain(labels[key])}, " for key in watch.same if key in labels)
    how = "is fixed" if job.status is Status.COMPLETED else "broke"
    return f"{job.ref.job_id} {how} ({where}{before.ref.job_id} {_ENDED.get(before.status, 'runs')})"


def _plain(text: str) -> str:
    """The first 300 characters of a job's text, with the markup of Slack and Mattermost escaped."""
    clean = sanitize(text, colour=False).strip()
    short = clean if len(clean) <= 300 else f"{clean[:300]}…"
    escaped = short.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKUP.sub("\\g<0>\u200b", escaped)
