"""Reading from the service over HTTP.

client              ``Client`` follows a job's log over as many connections as it takes, and reads pages
service_connection  ``ServiceConnection`` sends one request, and turns what goes wrong into an error
follower            ``Follower`` turns the bytes of event streams into lines, gaps, job states, notices and redactions
near                what was probably meant by an id that was not found
terminal            ``LineRenderer`` turns lines into text that is safe to print on a terminal

``Client.follow`` gives each connection's bytes to one ``Follower``, which gives each sequence number once, or a gap.
When a connection ends early, the client reconnects with the follower's last number as ``Last-Event-ID``.
"""
