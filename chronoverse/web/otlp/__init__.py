"""OpenTelemetry's log records as lines of jobs.

``decoding``    reads requests, in protobuf or JSON. It and ``columns`` need the extra ``otlp``
``columns``     reads records of protobuf that are alike, all at once
``json_lists``  cuts long lists of JSON into slices
``records``     says of which job a record is, and what its lines are
``requests``    appends the records of a request, and answers as the protocol says

https://opentelemetry.io/docs/specs/otlp/#otlphttp
"""
