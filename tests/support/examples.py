"""How many examples Hypothesis tries."""

from typing import Final

from hypothesis import settings

#: Examples that a test tries in the full profile, unless it says otherwise.
FULL_EXAMPLES: Final = 50


def examples(full: int) -> int:
    """The ``max_examples`` of a test that tries ``full`` examples in the full profile: fewer in the default profile."""
    return max(1, full * settings().max_examples // FULL_EXAMPLES)
