"""The virtual environment of the peers that are Python packages: ``.bench``, made by ``make bench``."""

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from bench.processes import ROOT

_ASK: Final = """
import importlib.metadata, json, sys
print(json.dumps({name: importlib.metadata.version(name) for name in sys.argv[1:]}))
"""


def python() -> Path:
    """The path of its interpreter, which may not exist. ``BENCH_VENV`` names another environment."""
    return ROOT / os.environ.get("BENCH_VENV", ".bench") / "bin" / "python"


def missing(package: str) -> str:
    """Why the package cannot be used; empty if it can."""
    if not python().exists():
        return f"no virtual environment {python().parents[1].name}: make bench makes it"
    return "" if versions([package]) else f"{package} is not installed in {python().parents[1].name}"


def versions(packages: Sequence[str]) -> dict[str, str]:
    """The installed versions; empty if one of the packages is missing."""
    asked = [str(python()), "-c", _ASK, *packages]
    result = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=30)
    if result.returncode:
        return {}
    found: dict[str, str] = json.loads(result.stdout)
    return found
