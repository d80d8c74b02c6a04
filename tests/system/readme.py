"""The code blocks of the README and docs/clients.md, for tests that run them exactly as printed."""

import re
import shutil
import sys
from pathlib import Path
from typing import Final

from tests.support.service import ROOT

_DOCUMENTS: Final = [(ROOT / name).read_text("utf-8") for name in ("README.md", "docs/clients.md")]
#: What the client examples read.
SERVICE_URL: Final = "http://127.0.0.1:8000"
#: These examples' languages, each with a text that is in no other block of the language.
CLIENTS: Final = {"python": "httpx_sse", "js": "EventSourceParserStream"}
_NODE_MODULES: Final = ROOT / "tests" / "clients" / "node_modules"


def blocks(language: str) -> list[str]:
    """The code blocks of a language. All blocks are matched, so that no end of a block is taken for a start."""
    fence = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    return [text for document in _DOCUMENTS for marked, text in fence.findall(document) if marked == language]


def block(language: str, containing: str) -> str:
    """The only block of a language that contains a text."""
    (found,) = [text for text in blocks(language) if containing in text]
    return found


def what_a_client_lacks(language: str) -> str:
    """What this machine lacks to run an example of :data:`CLIENTS`; empty if nothing."""
    if language == "python":
        return ""
    if not shutil.which("node"):
        return "node is not installed"
    return "" if _NODE_MODULES.is_dir() else "npm install --prefix tests/clients was not run"


def client_command(language: str, directory: Path, url: str) -> list[str]:
    """The command that runs an example of :data:`CLIENTS` with the service at ``url``, from a file in ``directory``.

    The example is as printed except for the service's address. It reads a token from the variable ``TOKEN``.
    """
    printed = block(language, CLIENTS[language])
    assert SERVICE_URL in printed
    text = printed.replace(SERVICE_URL, url)
    if language == "python":
        path = directory / "example.py"
        path.write_text(text)
        return [sys.executable, str(path)]
    path = directory / "example.mjs"
    path.write_text(text)
    modules = directory / "node_modules"
    if not modules.exists():
        modules.symlink_to(_NODE_MODULES)
    return ["node", str(path)]
