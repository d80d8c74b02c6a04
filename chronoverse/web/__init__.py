"""The HTTP service. Only this package uses Flask, gevent and gunicorn.

app         builds the application of a worker
worker      gunicorn's worker class
routes/     the routes, one module for each group
guards/     limits on a worker's work, memory and sockets
streaming/  writes event streams to their sockets
otlp/       stores OpenTelemetry log records as lines
http/       what all routes share
static/     the log page
"""
