"""What all routes share.

dependencies     what a worker has, built once and handed to every route
schemas          parameters and bodies of requests and answers; also publish_schemas and search_schemas
bodies           reads what requests send, within bounds
pages            makes pages of lines; page_budget bounds what one may cost; cursors spells where the next begins
problems         errors as answers (RFC 9457); parse_errors does it for requests that are no HTTP
request_id       names each request; client_ip says where it came from
shares           divides a bounded resource among subjects; token_bucket bounds a rate
event_loop       lets others in the worker go on
logging          the service's log lines; tracing makes spans
openapi          the description of all routes
"""
