"""The commands in all documents, and whether each block runs in a test, or why it cannot."""

import re
from dataclasses import dataclass
from typing import Final

from tests.deploy import two_nodes
from tests.support.service import ROOT

#: Blocks that a dedicated test runs or reads: the page, a text in the block, and the test's file.
TESTED: Final = (
    ("README.md", "chronoverse run --", "tests/system/test_readme.py"),
    ("README.md", "chronoverse logs -f", "tests/system/test_readme.py"),
    ("README.md", "curl -N", "tests/system/test_readme.py"),
    ("docs/tutorial.md", "", "tests/system/test_readme.py"),
    ("docs/celery.md", "celery -A shop worker", "tests/integrations/test_celery.py"),
    ("docs/recovery.md", "export ARCHIVE=", "tests/system/test_recovery.py"),
    ("docs/recovery.md", "--rdb", "tests/system/test_recovery.py"),
    ("docs/recovery.md", "archive --import", "tests/system/test_recovery.py"),
    ("docs/recovery.md", "archive --confirm-store", "tests/system/test_recovery.py"),
    ("docs/recovery.md", "archive --verify", "tests/system/test_recovery.py"),
    ("docs/recovery.md", 'rm -rf "$REDIS_DIR', "tests/system/test_recovery.py"),
    ("docs/recovery.md", "appendonly yes", "tests/system/test_recovery.py"),
    ("docs/recovery.md", 'cp -a "$BACKUP', "tests/system/test_recovery.py"),
    ("docs/conformance.md", "", "tests/cli/conformance/test_conformance.py"),
    ("docs/redis.md", "redis-cli", "tests/deploy/test_foreign_runners.py"),
    ("docs/redis.md", "umask 077", "tests/deploy/test_redis_users.py"),
    ("docs/gitlab.md", "# run_exec", "tests/runner/test_continue.py"),
    ("docs/gitlab.md", "# cleanup_exec", "tests/runner/test_continue.py"),
    ("docs/any-language.md", "# runner.sh", "tests/cli/conformance/test_conformance.py"),
)
#: Blocks that are not run: the page, a text in the block, and the reason.
NOT_RUN: Final = (
    ("CONTRIBUTING.md", "make setup", "it installs what CI has installed, and runs all tests"),
    (
        "README.md",
        "-r requirements.txt",
        "it installs libraries. The release's rehearsal does, and starts what it installed",
    ),
    ("README.md", "-r requirements-dev.txt", "it installs what CI has installed, and runs all tests"),
    (
        "docs/cli.md",
        "chronoverse login",
        "a person has to sign in. docs/deploying.md has the command, and its test signs in",
    ),
    (
        "docs/deploying.md",
        "cd deploy && docker compose",
        "it needs Docker. tests/deploy/test_compose.py reads the file",
    ),
    ("docs/faults.md", "", "each takes minutes"),
    ("docs/kubernetes.md", "kubectl", "it needs a cluster"),
    ("docs/cron-systemd.md", "systemctl", "it needs systemd. A test runs the command of the unit"),
    ("docs/kubernetes.md", "docker run", "it needs Docker, and an image with the command"),
    ("docs/slack.md", "hooks.slack.com", "it needs Slack. tests/notify tells a receiver of its own"),
    ("docs/tokens.md", "oauth2-proxy", "it needs that program, and an issuer"),
)
_FENCE: Final = re.compile(r"^ *```([^\n`]*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
_SETTINGS: Final = re.compile(r"[A-Z_0-9]+=.*")
#: How a command begins. A block with such a line must be marked as a shell block.
_COMMAND: Final = re.compile(
    r"^ *(?:\$ )?(?:\.venv/bin/)?(?:chronoverse|python3?|pip|curl|docker|helm|make|npm|redis-cli) ", re.M
)
_SHELL: Final = ("sh", "console")
#: A chronoverse command and the rest of its shell command. The name is also a package and a unit.
_OF_THE_PROGRAM: Final = re.compile(
    r"(?<![\w.-])(?<!install )(?<!--now )chronoverse ([a-z]+)((?:'[^']*'|\"[^\"]*\"|[^'\"\n;&|<>)])*)"
)


@dataclass(frozen=True)
class Block:
    """A block of commands in a document."""

    page: str
    text: str

    @property
    def settings(self) -> dict[str, str] | None:
        """The variables that the block sets, if it does nothing else."""
        lines = self.text.splitlines()
        if not all(map(_SETTINGS.fullmatch, lines)):
            return None
        return {name: value.strip('"') for name, _, value in (line.partition("=") for line in lines)}


def pages() -> dict[str, str]:
    """All user documents, by path."""
    paths = [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("docs/benchmarks/*.md"),
        ROOT / "clients/js/README.md",
    ]
    return {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in sorted(paths)}


def shell_blocks() -> list[Block]:
    """All shell blocks, in page order."""
    return [
        Block(page, text)
        for page, document in pages().items()
        for mark, text in _FENCE.findall(document)
        if mark in _SHELL
    ]


def unmarked_commands() -> list[Block]:
    """Blocks with a command that are not marked as shell blocks."""
    return [
        Block(page, text)
        for page, document in pages().items()
        for mark, text in _FENCE.findall(document)
        if not mark and _COMMAND.search(text)
    ]


def rows_of(block: Block) -> list[str]:
    """A block's entries in the tables: the test's file, or the reason."""
    rows = [what for page, text, what in (*TESTED, *NOT_RUN) if page == block.page and text in block.text]
    path = {command for command, _ in two_nodes.blocks()}
    return rows + ["tests/deploy/test_two_nodes.py"] * (block.page == "docs/deploying.md" and block.text in path)


def blocks_to_run() -> list[Block]:
    """Blocks that are in no table and contain more than settings."""
    return [block for block in shell_blocks() if not rows_of(block) and block.settings is None]


def _code() -> list[tuple[str, str]]:
    """Each block, in any language, and each text between backquotes, with its page."""
    return [
        (page, text)
        for page, document in pages().items()
        for text in [
            *(text for _, text in _FENCE.findall(document)),
            *re.findall(r"`([^`\n]+)`", _FENCE.sub("", document)),
        ]
    ]


def requests() -> list[tuple[str, str, str, list[str]]]:
    """Each request, such as ``GET /audit?limit=1``: page, method, path and parameter names."""
    return [
        (page, method, path, re.findall(r"(?:^|&)(\w+)=", query))
        for page, text in _code()
        for method, path, query in re.findall(r"\b(GET|POST|PUT|DELETE) (/[^\s?]*)(?:\?(\S*))?", text)
    ]


def commands() -> list[tuple[str, str, list[str]]]:
    """Each ``chronoverse NAME`` in a block or between backquotes: page, name, and the options that follow."""
    found = []
    for page, text in _code():
        for name, rest in _OF_THE_PROGRAM.findall(re.sub(r"(?m)(^| )# .*$", "", text.replace("\\\n", " "))):
            found.append((page, name, re.findall(r"(?<=\s)--?[a-z][\w-]*", rest.partition(" -- ")[0])))
    return found
