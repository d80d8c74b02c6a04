"""The number of examples that Hypothesis tries."""

from typing import Final

from hypothesis import settings

#: Default number of examples per test in the full profile.
FULL_EXAMPLES: Final = 50


def examples(full: int) -> int:
    """The ``max_examples`` of a test: ``full`` in the full profile, fewer in the default profile."""
    return max(1, full * settings().max_examples // FULL_EXAMPLES)
