"""What all routes share.

dependencies    a worker's store, caches and guards, built once and passed to every blueprint
schemas         parameters and bodies of requests and answers; publish_schemas those for runners
bodies          reads request bodies within bounds of size, time and memory
paging          pages: how they are read, their cursors, and the ``Link`` to the next page
problems        errors as answers (RFC 9457)
request_id      gives every request an id
client_ip       finds the client's address behind trusted proxies
cors            lets cross-origin pages read responses
logging         formats the service's log lines
tracing         makes OpenTelemetry spans
read_audit      logs who read which log
openapi         makes the OpenAPI document

A request waits for its turn (in ``web.worker``), and its token is verified (:meth:`Dependencies.check_request`). Its
view reads the body or the query by a schema, takes its turn (``web.guards.turns``), and makes a page within its budget.
Errors of any layer become problems.
"""
