"""Reads a Dockerfile: its stages and their instructions."""

from typing import NamedTuple


class Step(NamedTuple):
    """One instruction, such as ``RUN``, and its arguments. Continuation lines are joined."""

    word: str
    rest: str


def read_stages(text: str) -> list[list[Step]]:
    """The instructions of each build stage, without comments. Each stage begins with its FROM."""
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    stages: list[list[Step]] = []
    for line in filter(str.strip, lines.replace("\\\n", " ").splitlines()):
        word, _, rest = line.partition(" ")
        if word == "FROM":
            stages.append([])
        stages[-1].append(Step(word, rest.strip()))
    return stages
