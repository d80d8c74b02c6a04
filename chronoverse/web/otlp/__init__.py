"""OpenTelemetry's log records as lines of jobs.

``decoding``  reads requests, in protobuf or JSON. Only this module needs the extra ``otlp``
``records``   says of which job a record is, and what its lines are
``requests``  appends the records of a request, and answers as the protocol says

https://opentelemetry.io/docs/specs/otlp/#otlphttp
"""
