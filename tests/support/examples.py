"""How many examples Hypothesis tries, and of which characters."""

from typing import Final

from hypothesis import settings
from hypothesis import strategies as st

#: Default number of examples per test in the full profile.
FULL_EXAMPLES: Final = 50
#: The characters of any text. Which ones UTF-8 can encode, Hypothesis's default, takes each process of a clean checkout
#: 2 s of CPU time to compute.
CHARACTERS: Final = st.characters(exclude_categories=["Cs"])


def examples(full: int) -> int:
    """The ``max_examples`` of a test: ``full`` in the full profile, fewer in the default profile."""
    return max(1, full * settings().max_examples // FULL_EXAMPLES)
