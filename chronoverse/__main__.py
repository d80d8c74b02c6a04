"""``python -m chronoverse`` is ``chronoverse``."""

import sys

from chronoverse.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
