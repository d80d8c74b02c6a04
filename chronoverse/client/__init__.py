"""Clients of the service over HTTP.

client              ``Client`` follows a job's log across reconnects, reads pages, and changes jobs
service_connection  ``ServiceConnection`` sends single requests, and converts failures to errors
follower            ``Follower`` decodes event streams into lines, gaps, job states, notices and redactions
login               ``LoginFile`` stores a sign-in at an issuer, and renews its token
near                suggests ids similar to one that was not found
"""
