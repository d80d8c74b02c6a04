"""The version of this build."""

from pathlib import Path

from chronoverse import __version__


def build_version() -> str:
    """The version, with the commit for a development version: ``0.3.0.dev0+g1a2b3c4d``.

    In a checkout, git provides the commit. An installed package has the commit in its metadata, as
    ``tool.hatch.version`` in ``pyproject.toml`` calls this function when a wheel is built. The version of a release, or
    of a source tree without git, has no commit.
    """
    if ".dev" not in __version__:
        return __version__
    import subprocess

    root = Path(__file__).parents[2]
    try:
        if not (root / ".git").exists():
            from importlib import metadata  # takes 10 ms

            return metadata.version("chronoverse")
        command = ["git", "rev-parse", "--short=8", "HEAD"]
        commit = subprocess.run(command, cwd=root, capture_output=True, check=True, text=True).stdout.strip()
    except (ImportError, OSError, subprocess.CalledProcessError):
        return __version__
    return f"{__version__}+g{commit}"
