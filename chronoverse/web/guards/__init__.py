"""The guards of a worker: what bounds its work, its memory and its sockets.

A worker serves all its requests and streams on one event loop, so one client could delay all others. Each bound is in
the unit that hurts. A *subject* is the user of a token. Whoever is refused gets 503 when the worker has no room, and
429 when the own share is used up. ``python -m chronoverse.web.guards`` prints the bounds below as a table, with the
value of each constant; ``docs/architecture.md`` has it.

turns: how many requests do the same expensive work at the same time. Subjects, or client addresses, get it in turn.

- a request's wait to begin, addresses in turn; a new viewer's: {guards.turns.ACCEPT_WAIT_SECONDS}, then 503
- pages and listings that are made at the same time, for each server of the store; those of one subject; the wait to
  begin: {guards.turns.MAX_PAGES}; {guards.turns.MAX_SUBJECT_PAGES}; {guards.turns.WAIT_SECONDS}, then 503 or 429
- reads of stored lines or of many jobs at the same time, for each server of the store, subjects in turn; those of
  downloads: {guards.turns.MAX_READS} after {guards.turns.WAIT_SECONDS} at most, then 503; as many after
  {guards.turns.DOWNLOAD_WAIT_SECONDS} at most, then the download is cut off

event_loop: how long a greenlet works before the others run.

- a request's work, and the beginning of requests, before other greenlets run: {guards.event_loop.WORK_SLICE_SECONDS};
  parsing a body of 8 MiB takes some 15 ms
- filling sockets before other greenlets run: {streaming.stream_writer.PASS_SECONDS}

memory: shares of bytes. A subject that is alone may have half, a second one half of the rest, and so on.

- answers that clients have not taken yet, by subject; the wait before another page is made for a subject that leaves no
  room for it: {guards.memory.UNREAD_ANSWERS_BYTES}, then 503 or 429; answers up to {guards.memory.UNCOUNTED_BYTES} are
  not counted; {guards.turns.UNREAD_WAIT_SECONDS}
- request bodies, by subject; the first {guards.memory.SHORT_BODY_BYTES} of each; the rest:
  {guards.memory.SHORT_BODIES_BYTES}; {guards.memory.MAX_LONG_BODIES} times the longest body; then 503 or 429

rates: bytes or jobs a second.

- what a subject publishes over HTTP: `CHRONOVERSE_MAX_PUBLISH_RATE_PER_TOKEN` bytes a second after a burst of
  {guards.rates.BURST_SECONDS}, then 429
- jobs that log records of a subject begin; the time after which such a request should be repeated:
  {guards.rates.MAX_NEW_JOBS} at once, {guards.rates.NEW_JOBS_PER_SECOND} more in a second, then 429;
  {guards.rates.NEW_JOBS_SECONDS}
- what many replays write together; from how many on; one pause: `CHRONOVERSE_MAX_REPLAY_RATE` bytes a second;
  {guards.rates.FEW_REPLAYS}; {guards.rates.MAX_PAUSE_SECONDS}

admission: who may open an event stream or a download, and the end of a worker.

- streams and downloads of a worker, of a subject, of a client address: `CHRONOVERSE_MAX_STREAMS`,
  `CHRONOVERSE_MAX_STREAMS_PER_TOKEN`, `CHRONOVERSE_MAX_STREAMS_PER_ADDRESS`, then 503 or 429
- the ends of a worker's streams when it shuts down: spread over `CHRONOVERSE_DRAIN_SECONDS`, then
  {worker.LINGER_SECONDS} for the slow ones

connection: how slowly a client may send a head or read an answer, and which connections are closed to make room.

- connections of a worker; how long one must have waited for its client before it may be closed to make room; how many
  are closed for that: `CHRONOVERSE_MAX_STREAMS` and 200, within `ulimit -n` less {worker.SPARE_DESCRIPTORS};
  {guards.connection.MIN_IDLE_SECONDS}; 1,000 a second
- a request's head: {guards.connection.HEAD_BYTES}, with the start of a body that is read with it, then 431; it must
  come within 5 s (`keepalive` in `gunicorn.conf.py`)
- one write to a viewer: {guards.connection.STALL_SECONDS}, then the connection is cut
- sending an ordinary answer: {guards.connection.ANSWER_LIMITS.seconds} and 1 s more for each
  {guards.connection.ANSWER_LIMITS.bytes_per_second}; {guards.connection.STALL_SECONDS} in which the client takes
  nothing; {guards.connection.SEND_BUFFER_BYTES} in the kernel
- sending a download: {guards.connection.DOWNLOAD_LIMITS.stall_seconds} in which the client takes nothing; its token's
  `exp`

Bodies are read by :mod:`chronoverse.web.http.bodies`, and full sockets have a scheduler
(:mod:`chronoverse.web.streaming.stream_writer`). Scans have bounds of their own (:mod:`chronoverse.history.scans`).

- a request's body, as sent and as inflated: `CHRONOVERSE_MAX_BODY_BYTES`, then 413
- waiting for the next {http.bodies.READ_BYTES} of a body; for the whole: {http.bodies.READ_SECONDS};
  {http.bodies.RECEIVE_SECONDS}; then 408
- brackets, commas and quotation marks outside of the strings of a body: {http.bodies.MAX_STRUCTURAL_CHARACTERS}, then
  400
- brackets outside of the strings of log records in JSON, which are parsed in slices: {otlp.json_lists.MAX_BRACKETS},
  then 400
- log records, resources and scopes of a request; bytes, lines and attributes of a record; lines of a request; bytes of
  a value that is no text: {otlp.decoding.MAX_RECORDS}, then 413; {otlp.decoding.MAX_RECORD_BYTES},
  {otlp.records.MAX_RECORD_LINES}, {otlp.decoding.MAX_ATTRIBUTES}; {otlp.records.MAX_LINES};
  {otlp.decoding.MAX_VALUE_BYTES}; others are rejected
"""
