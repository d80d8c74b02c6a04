"""The workflows that a token has rights for. An entry is a workflow id, or a prefix of ids followed by one ``*``."""

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Self

from chronoverse.joblog.model import IDENTIFIER

READ: Final = "logs:read"
WRITE: Final = "logs:write"
ADMIN: Final = "logs:admin"
SCOPES: Final = (READ, WRITE, ADMIN)

_PART: Final = re.compile("[A-Za-z0-9._-]{1,128}")


def entry_problem(entry: object) -> str | None:
    """What is wrong with an entry, or None. Ambiguous entries are invalid, so that no token gets unintended rights."""
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
    """A set of workflows: those in ``ids``, and those whose ids begin with one of ``prefixes``."""

    ids: frozenset[str]
    #: An empty prefix matches every id.
    prefixes: tuple[str, ...] = ()

    @classmethod
    def parse(cls, entries: object) -> Self:
        """Parses a list of entries. Raises ValueError, which names the invalid entry and the reason."""
        if not isinstance(entries, list):
            raise ValueError('is not a list of workflow ids, prefixes such as "team-a.*", or "*"')
        for entry in entries:
            if found := entry_problem(entry):
                # An id has at most 128 characters; the quotes are two more.
                raise ValueError(f"has {entry!a:.130}: {found}" if isinstance(entry, str) else f"is refused: {found}")
        prefixes = sorted({entry[:-1] for entry in entries if entry.endswith("*")})
        return cls(frozenset(entry for entry in entries if not entry.endswith("*")), tuple(prefixes))

    @property
    def are_all(self) -> bool:
        return "" in self.prefixes

    def __contains__(self, workflow_id: object) -> bool:
        return isinstance(workflow_id, str) and (workflow_id in self.ids or workflow_id.startswith(self.prefixes))

    def __or__(self, other: "Workflows") -> "Workflows":
        return Workflows(self.ids | other.ids, self.prefixes + other.prefixes)


class Rule(NamedTuple):
    """Grants rights to tokens whose ``claim`` passes ``test``. A template (prefix, claim, suffix) yields an entry."""

    claim: str
    test: Callable[[str], bool]
    workflows: Workflows
    scopes: Collection[str] | None
    templates: Sequence[tuple[str, str, str]] = ()

    def workflows_of(self, claims: Mapping[str, Any]) -> Workflows | None:
        """The workflows that the rule grants to a token with these claims. None if it does not match."""
        value = _claim(claims, self.claim)
        values = value if isinstance(value, list) else [value]
        if not any(isinstance(each, str) and self.test(each) for each in values):
            return None
        if not self.templates:
            return self.workflows
        entries = []
        for before, claim, after in self.templates:
            value = _claim(claims, claim)
            part = value.replace("/", ".").replace(":", ".") if isinstance(value, str) else ""
            # The claim's value must not turn the entry into a prefix, or make it invalid.
            if not _PART.fullmatch(part) or entry_problem(entry := f"{before}{part}{after}"):
                return None
            entries.append(entry)
        return self.workflows | Workflows.parse(entries)


def rights_by(rules: Iterable[Rule], claims: Mapping[str, Any], scopes: Collection[str]) -> dict[str, Workflows]:
    """Workflows by scope. Each matching rule adds its workflows to its scopes, or to ``scopes`` if it names none."""
    rights = dict[str, Workflows]()
    for rule in rules:
        workflows = rule.workflows_of(claims)
        if workflows is not None:
            for scope in scopes if rule.scopes is None else rule.scopes:
                rights[scope] = rights[scope] | workflows if scope in rights else workflows
    return rights


def _claim(claims: Mapping[str, Any], name: str) -> Any:
    """The claim with this name. ``kubernetes.io.namespace`` also names a value inside the object ``kubernetes.io``."""
    if name in claims:
        return claims[name]
    for dot in re.finditer(r"\.", name):
        if isinstance(inner := claims.get(name[: dot.start()]), dict):
            return _claim(inner, name[dot.end() :])
    return None
