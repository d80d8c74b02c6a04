"""The suite as the service runs: patched by gevent before anything else is imported. Takes pytest's arguments."""

from gevent import monkey

monkey.patch_all()

import sys

import pytest

if __name__ == "__main__":
    sys.exit(pytest.main())
