"""Stores OpenTelemetry log records as lines of jobs.

``decoding``    decodes requests, in protobuf or JSON. This module and ``columns`` need the extra ``otlp``
``columns``     decodes protobuf records that have the same attributes all at once
``json_lists``  cuts long JSON lists into slices
``records``     finds each record's job, and makes its lines
``requests``    appends a request's records, and makes the answer

https://opentelemetry.io/docs/specs/otlp/#otlphttp
"""
