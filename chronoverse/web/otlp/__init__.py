"""OpenTelemetry's log records as lines of jobs.

``decoding``    reads requests, in protobuf or JSON. It and ``columns`` need the extra ``otlp``
``columns``     decodes protobuf records with the same attributes all at once
``json_lists``  cuts long lists of JSON into slices
``records``     finds the job of a record, and makes its lines
``requests``    appends the records of a request, and makes the answer

https://opentelemetry.io/docs/specs/otlp/#otlphttp
"""
