"""``python -m chronoverse.settings`` prints the table of all settings."""

from chronoverse.settings import markdown_table

if __name__ == "__main__":
    print(markdown_table(), end="")
