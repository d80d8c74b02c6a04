"""The table of the guards' bounds in docs/architecture.md."""

from pathlib import Path

from chronoverse.web.guards.__main__ import markdown_table


def test_the_documented_table_is_the_one_that_the_code_prints() -> None:
    """It has the value of each constant."""
    document = Path(__file__).parents[3] / "docs/architecture.md"
    assert f"\n\n{markdown_table()}" in document.read_text("utf-8")
