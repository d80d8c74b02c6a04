"""Which workflows a user has a right for, as entries name them in tokens, or in a file that gives them to groups.

An entry is the id of a workflow, or the beginning of ids and one ``*``. So ``*`` alone names all workflows.
"""

import logging
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

from chronoverse.errors import RightsUnavailable, SettingsError
from chronoverse.joblog.model import IDENTIFIER

#: The scopes that requests need.
READ: Final = "logs:read"
WRITE: Final = "logs:write"
ADMIN: Final = "logs:admin"

#: Bytes of the file, at most. It is parsed between two requests, which takes 0.1 s for that many.
MAX_MAP_BYTES: Final = 262_144

log = logging.getLogger(__name__)


def entry_problem(entry: object) -> str | None:
    """What is wrong with an entry, or None. Nobody may get more than was meant, so no entry is guessed at."""
    if not isinstance(entry, str):
        return "an entry must be a string"
    if not entry:
        return "an entry must not be empty"
    if "*" in entry[:-1]:
        return "* is allowed only as the last character"
    if entry != "*" and not IDENTIFIER.fullmatch(entry.removesuffix("*")):
        return "an entry must be a workflow id or a prefix followed by *"
    return None


@dataclass(frozen=True, slots=True)
class Workflows:
    """Some workflows: those with one of ``ids``, and those whose ids begin with one of ``prefixes``."""

    ids: frozenset[str]
    #: The empty text is a prefix of every id.
    prefixes: tuple[str, ...] = ()

    @classmethod
    def parse(cls, entries: object) -> Self:
        """The workflows that a list of entries names. Raises ValueError, which says what is wrong with which entry."""
        if not isinstance(entries, list):
            raise ValueError('is not a list of workflow ids, prefixes such as "team-a.*", or "*"')
        for entry in entries:
            if found := entry_problem(entry):
                # 130 characters of the entry: an id has 128.
                raise ValueError(f"has {entry!a:.130}: {found}" if isinstance(entry, str) else f"is refused: {found}")
        prefixes = sorted({entry[:-1] for entry in entries if entry.endswith("*")})
        return cls(frozenset(entry for entry in entries if not entry.endswith("*")), tuple(prefixes))

    @property
    def are_all(self) -> bool:
        """Whether these are all workflows."""
        return "" in self.prefixes

    def __contains__(self, workflow_id: object) -> bool:
        return isinstance(workflow_id, str) and (workflow_id in self.ids or workflow_id.startswith(self.prefixes))

    def __or__(self, other: "Workflows") -> "Workflows":
        return Workflows(self.ids | other.ids, self.prefixes + other.prefixes)


class Group(NamedTuple):
    """What the members of a group may do. Without ``scopes`` that is what the scopes of their tokens say."""

    workflows: Workflows
    scopes: frozenset[str] | None


class WorkflowsMap:
    """The file CHRONOVERSE_JWT_WORKFLOWS_MAP, which gives rights to groups. It is read again when it has changed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, ...] | None = None
        self._groups: dict[str, Group] | None = None
        self._is_valid = False

    def read(self) -> dict[str, Group]:
        """What the file says now. Raises :class:`SettingsError`, which names the first error and its group."""
        try:
            with self._path.open("rb") as file:
                content = file.read(MAX_MAP_BYTES + 1)
            if len(content) > MAX_MAP_BYTES:
                raise ValueError(f"it has more than {MAX_MAP_BYTES} bytes")
            groups = {name: _group(name, value) for name, value in tomllib.loads(content.decode()).items()}
            if not groups:
                raise ValueError("it has no group")
        except OSError as error:
            raise SettingsError(f"CHRONOVERSE_JWT_WORKFLOWS_MAP: {self._path}: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise SettingsError(f"CHRONOVERSE_JWT_WORKFLOWS_MAP: {self._path}: {error}") from error
        return groups

    def refresh(self) -> bool:
        """Reads the file if it has changed. If it has errors, they are logged, and the previous content stays in use.

        Returns whether it has none.
        """
        seen: tuple[int, ...] = ()
        try:
            status = self._path.stat()
            seen = status.st_ino, status.st_ctime_ns, status.st_size
        except OSError:
            pass  # read() says what is wrong.
        if seen != self._seen:
            self._seen = seen
            try:
                self._groups = self.read()
                log.info("CHRONOVERSE_JWT_WORKFLOWS_MAP: %d groups were read", len(self._groups))
                self._is_valid = True
            except SettingsError as error:
                log.error("%s; the previous content stays in use", error)
                self._is_valid = False
        return self._is_valid

    def check(self) -> dict[str, Group]:
        """The groups. Raises :class:`RightsUnavailable` when this process has never read a file without errors."""
        self.refresh()
        if self._groups is None:
            raise RightsUnavailable("CHRONOVERSE_JWT_WORKFLOWS_MAP is invalid, and no earlier content is loaded")
        return self._groups

    def rights(self, names: Iterable[str], scopes: frozenset[str]) -> dict[str, Workflows]:
        """The rights of a user in the groups with these names, whose token has these scopes. Raises as :meth:`check`.

        Each group gives its scopes for its own workflows only. Groups that are not in the file give nothing.
        """
        groups, rights = self.check(), dict[str, Workflows]()
        for group in [groups[name] for name in names if name in groups]:
            for scope in scopes if group.scopes is None else group.scopes:
                rights[scope] = rights[scope] | group.workflows if scope in rights else group.workflows
        return rights


def _group(name: str, value: Any) -> Group:
    """Raises ValueError."""
    try:
        if not isinstance(value, dict):
            raise ValueError("is not a table with workflows and scopes")
        for key in value.keys() - {"workflows", "scopes"}:
            raise ValueError(f"has {key!a:.130}, which is neither workflows nor scopes (a name with dots needs quotes)")
        scopes = value.get("scopes")
        known = (READ, WRITE, ADMIN)
        if scopes is not None and not (isinstance(scopes, list) and scopes and all(each in known for each in scopes)):
            raise ValueError(f"has scopes that are not a list of some of {', '.join(known)}")
        try:
            workflows = Workflows.parse(value.get("workflows"))
        except ValueError as error:
            raise ValueError(f"workflows {error}") from None
    except ValueError as error:
        raise ValueError(f"group {name!a:.130}: {error}") from error
    return Group(workflows, None if scopes is None else frozenset(scopes))
