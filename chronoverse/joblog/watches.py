"""Watches: webhooks about a workflow's jobs. Pure. ``docs/watches.md`` describes them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from ipaddress import ip_address
from typing import Any, Final, NamedTuple, Self
from urllib.parse import SplitResult, urlsplit

import orjson

from chronoverse.errors import Forbidden
from chronoverse.joblog.labels import Labels, has_labels
from chronoverse.joblog.model import Job, Status

TYPES: Final = {"end": "job.ended", "change": "job.changed", "silent": "job.silent"}
#: The statuses that each kind reports by default.
DEFAULT_STATUSES: Final = {"end": ("FAILED", "LOST"), "change": ("COMPLETED", "FAILED", "LOST"), "silent": ()}
RETRY_SECONDS: Final = 86_400
#: A watch's secret: ``whsec_`` and 24 to 64 bytes in base64, as Standard Webhooks defines.
SECRET: Final = re.compile(r"whsec_[A-Za-z0-9+/]{32,86}={0,2}", re.ASCII)

_URL: Final = re.compile(r"https?://[!-~]{1,2000}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """A watch. ``label``: labels that a job must have. ``same``: see :meth:`compares`.

    ``seconds``: the silence to report; None unless ``on`` is ``silent``. ``made_ms`` is Unix time.
    """

    workflow_id: str
    watch_id: str
    on: str
    url: str
    secret: str
    status: tuple[str, ...] = ()
    label: Labels = ()
    same: tuple[str, ...] = ()
    seconds: int | None = None
    made_ms: int = field(default=0, compare=False)

    def to_json(self) -> dict[str, Any]:
        """The watch as JSON for answers, without its secret."""
        shown = {name: getattr(self, name) for name in ("on", "status", "same", "seconds", "url")}
        return {"workflow_id": self.workflow_id, "id": self.watch_id, **shown, "label": dict(self.label)}

    def encode(self) -> bytes:
        """The watch as JSON for the store."""
        return orjson.dumps({**self.to_json(), "secret": self.secret, "made_ms": self.made_ms})

    @classmethod
    def decode(cls, text: bytes) -> Self:
        """Parses the output of :meth:`encode`."""
        found = orjson.loads(text)
        label, watch_id = tuple(sorted(found.pop("label").items())), found.pop("id")
        found |= {name: tuple(found[name]) for name in ("status", "same")}
        return cls(**found, label=label, watch_id=watch_id)

    def tells(self, job: Job) -> bool:
        """Whether the watch reports the end of ``job``, or the silence of a running one."""
        return has_labels(job.labels, self.label) and (self.on == "silent" or job.status in self.status)

    def compares(self, job: Job, other: Job) -> bool:
        """Whether ``job`` can be compared with ``other``.

        ``other`` must have ended, not as CANCELED, and have the watch's labels. The labels in ``same`` must be equal.
        """
        values = [[dict(each.labels).get(key) for key in self.same] for each in (job, other)]
        is_end = other.status.terminal and other.status is not Status.CANCELED
        return is_end and values[0] == values[1] and has_labels(other.labels, self.label)


class Event(NamedTuple):
    """One event of a watch. ``name`` distinguishes events of one attempt; ``queued_ms`` is Unix time.

    ``before``: the job that a change is compared with. ``last``: the last line before a silence.
    """

    name: str
    job_id: str
    attempt: int
    status: str
    queued_ms: int
    before: str | None = None
    last: int = 0

    def webhook_id(self, watch: Watch) -> str:
        """The message's id. The same for every retry."""
        parts = [watch.workflow_id, watch.watch_id, self.job_id, self.attempt, self.name]
        return "msg_" + blake2b(orjson.dumps(parts), digest_size=16).hexdigest()


def split_url(url: str, hosts: Mapping[str, bool]) -> tuple[SplitResult, str, bool]:
    """A watch's parsed URL, its host, and whether ``hosts`` allows that host a private address.

    Raises ValueError for an invalid URL, and :class:`Forbidden` if its host is not in ``hosts``.
    """
    parts = urlsplit(url if _URL.fullmatch(url) else "")
    if "\\" in url or not parts.hostname or "@" in parts.netloc or parts.fragment:
        raise ValueError("expected https://HOST[:PORT]/PATH without a user or a fragment")
    if parts.port == 0:
        raise ValueError("invalid port")
    host = parts.hostname
    if "[" in parts.netloc:
        host = str(ip_address(host))
    if host not in hosts:
        raise Forbidden(f"{host} is not in CHRONOVERSE_WEBHOOK_HOSTS: ask the service's administrator to add it")
    if parts.scheme == "http" and not hosts[host]:
        raise ValueError(f"http:// requires {host}+private in CHRONOVERSE_WEBHOOK_HOSTS: use https://")
    return parts, host, hosts[host]
