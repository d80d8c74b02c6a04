"""Which workflows a user has a right for, as entries name them in tokens.

An entry is the id of a workflow, or the beginning of ids and one ``*``. So ``*`` alone names all workflows.
"""

from dataclasses import dataclass
from typing import Self

from chronoverse.joblog.model import IDENTIFIER


def entry_problem(entry: object) -> str | None:
    """What is wrong with an entry, or None. Nobody may get more than was meant, so no entry is guessed at."""
    if not isinstance(entry, str):
        return "an entry must be a text"
    if not entry:
        return "an entry must not be empty"
    if "*" in entry[:-1]:
        return "a * may only be the last character"
    if entry != "*" and not IDENTIFIER.fullmatch(entry.removesuffix("*")):
        return "an entry must be the id of a workflow, or begin like one and end with *"
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

    def __contains__(self, workflow_id: str) -> bool:
        return workflow_id in self.ids or workflow_id.startswith(self.prefixes)
