"""What all routes share.

dependencies    a worker's store, caches and guards, built once and passed to every blueprint
schemas         parameters, request bodies and answers
publish_schemas the same, for runners
bodies          reads request bodies, within limits on size, time and memory
paging          reads pages, and adds their cursors and ``Link``
problems        errors as answers (RFC 9457)
request_id      gives every request an id
client_ip       finds the client's address behind trusted proxies
cors            lets pages of other origins read responses
logging         formats the service's log lines
tracing         makes OpenTelemetry spans
read_audit      logs who read which log
openapi         makes the OpenAPI document
"""
