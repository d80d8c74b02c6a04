"""Reading from the service over HTTP.

client              ``Client`` follows a job's log over as many connections as it takes, and reads pages
service_connection  ``ServiceConnection`` sends one request, and turns what goes wrong into an error
follower            ``Follower`` turns the bytes of event streams into lines, gaps, job states, notices and redactions.
                    It gives each number once, and after a reconnection its last one is the ``Last-Event-ID``
login               ``LoginFile`` keeps a sign-in at an issuer, and renews its token
near                what was probably meant by an id that was not found
"""
