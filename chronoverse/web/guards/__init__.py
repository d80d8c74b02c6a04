"""Limits on a worker's work, memory and sockets, so that one client cannot delay all others. See docs/operations.md.

Each *subject* (a token's ``sub``) has a share of each limit. A refused request gets 503 if the worker is full, or 429
if its subject's share is used up.

turns       limits concurrent requests for the same expensive work. Subjects, or client addresses, take turns
event_loop  limits how long a greenlet runs before it yields
memory      limits bytes of request bodies and unread answers. A subject can hold as much as remains free
rates       limits bytes or jobs per second
admission   limits event streams and downloads, and drains a worker
connection  cuts clients that send or read too slowly, and closes idle connections to make room
"""
