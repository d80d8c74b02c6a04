"""Runs ``chronoverse serve`` for ``python app.py``. ``gunicorn app:app`` works as well."""

import sys

if __name__ == "__main__":
    from chronoverse.cli.main import main

    sys.exit(main(["serve", *sys.argv[1:]]))
else:
    from chronoverse.web.app import create_app

    app = create_app()
