"""Watches: webhooks about a workflow's jobs. Pure. ``docs/watches.md`` describes them."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from ipaddress import ip_address
from typing import Any, Final, NamedTuple
from urllib.parse import SplitResult, urlsplit

import orjson

from chronoverse.errors import Forbidden
from chronoverse.joblog.labels import has_labels
from chronoverse.joblog.model import Job, Status

TYPES: Final = {"end": "job.ended", "change": "job.changed", "silent": "job.silent"}
#: The statuses that each kind reports by default.
DEFAULT_STATUSES: Final = {"end": ("FAILED", "LOST"), "change": ("COMPLETED", "FAILED", "LOST"), "silent": ()}
RETRY_SECONDS: Final = 86_400
#: A watch's secret: ``whsec_`` and 24 to 64 bytes in base64, as Standard Webhooks defines.
SECRET: Final = re.compile(r"whsec_(?:[A-Za-z0-9+/]{4}){8,21}(?:[A-Za-z0-9+/]{2,3})?={0,2}", re.ASCII)

#: Allows brackets only around the whole host: in ``[::1].example``, urlsplit would find the host ``::1``.
_URL: Final = re.compile(r"https?://(?=[!-~]{1,2000}\Z)(?:\[[^][/?#]+\](?::[0-9]*)?|[^][/?#]+)(?:[/?#].*)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """A watch, with the fields of its JSON. ``label``: labels that a job must have. ``same``: see :meth:`compares`.

    ``seconds``: the silence to report; None unless ``on`` is ``silent``. ``made_ms`` is Unix time.
    """

    workflow_id: str
    id: str
    on: str
    status: list[str] = field(default_factory=list)
    same: list[str] = field(default_factory=list)
    seconds: int | None = None
    url: str
    label: dict[str, str] = field(default_factory=dict)
    secret: str
    made_ms: int = field(default=0, compare=False)

    def to_json(self) -> dict[str, Any]:
        """The watch as JSON for answers, without its secret."""
        return {name: value for name, value in asdict(self).items() if name not in ("secret", "made_ms")}

    def tells(self, job: Job) -> bool:
        """Whether the watch reports the end of ``job`` or, if the job is running, its silence."""
        is_told = not job.status.terminal if self.on == "silent" else job.status in self.status
        return is_told and has_labels(job.labels, self.label.items())

    def compares(self, job: Job, other: Job) -> bool:
        """Whether ``job`` can be compared with ``other``.

        ``other`` must have ended (not as CANCELED), and have the watch's labels. The labels in ``same`` must be equal.
        """
        values = [[dict(each.labels).get(key) for key in self.same] for each in (job, other)]
        is_end = other.status.terminal and other.status is not Status.CANCELED
        return is_end and values[0] == values[1] and has_labels(other.labels, self.label.items())


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
        """The message's id, which is the same for every retry."""
        parts = [watch.workflow_id, watch.id, self.job_id, self.attempt, self.name]
        return "msg_" + blake2b(orjson.dumps(parts), digest_size=16).hexdigest()


def split_url(url: str, hosts: Mapping[str, bool]) -> tuple[SplitResult, str, bool]:
    """A watch's parsed URL, its host, and whether ``hosts`` allows that host to have a private address.

    Raises ValueError for an invalid URL, and :class:`Forbidden` if its host is not in ``hosts``.
    """
    parts = urlsplit(url if _URL.fullmatch(url) else "")
    if "\\" in url or not parts.hostname or "@" in parts.netloc or parts.fragment or parts.port == 0:
        raise ValueError("expected https://HOST[:PORT]/PATH without a user or a fragment")
    host = str(ip_address(parts.hostname)) if "[" in parts.netloc else parts.hostname
    if host not in hosts:
        raise Forbidden(f"{host} is not in CHRONOVERSE_WEBHOOK_HOSTS: ask the service's administrator to add it")
    if parts.scheme == "http" and not hosts[host]:
        raise ValueError(f"http:// requires {host}+private in CHRONOVERSE_WEBHOOK_HOSTS: use https://")
    return parts, host, hosts[host]
