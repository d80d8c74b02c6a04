"""Reading from the service over HTTP.

client              ``Client`` follows a job's log across reconnects, and reads pages
service_connection  ``ServiceConnection`` sends one request, and turns failures into errors
follower            ``Follower`` turns the bytes of event streams into lines, gaps, job states, notices and redactions.
                    Each event id comes once; a reconnect sends the last as ``Last-Event-ID``
login               ``LoginFile`` keeps a sign-in at an issuer, and renews its token
near                suggestions for an id that was not found
"""
