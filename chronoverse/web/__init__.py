"""The service over HTTP. Only this package uses Flask, gevent and gunicorn.

app         builds the application of a worker
worker      gunicorn's worker class
routes/     one module for each group of routes
guards/     what bounds the work, the memory and the sockets of a worker
streaming/  event streams: who writes to their sockets
otlp/       log records of OpenTelemetry as lines
http/       what all routes share: dependencies, schemas, pages, bodies, problems, tracing
static/     the log page
"""
