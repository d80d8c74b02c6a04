"""The service over HTTP. The only package that knows Flask, gevent and gunicorn.

app         builds the application of a worker
worker      gunicorn's worker class
routes/     what each route answers
streaming/  event streams: who may open one, and who writes to its socket
http/       what all routes share: problems, pages, bodies, identity, tracing
static/     the page
"""

from chronoverse.web.app import create_app

__all__ = ["create_app"]
