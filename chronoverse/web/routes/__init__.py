"""The routes: each module has a blueprint."""
