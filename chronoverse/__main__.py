"""Runs the command line for ``python -m chronoverse``."""

import sys

from chronoverse.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
