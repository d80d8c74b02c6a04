"""``python -m chronoverse.settings`` prints the settings as documentation."""

from chronoverse.settings import markdown_table

if __name__ == "__main__":
    print(markdown_table(), end="")
