"""``python -m chronoverse`` is ``chronoverse``."""

import sys

from chronoverse.cli import main

if __name__ == "__main__":
    sys.exit(main())
