"""Event streams: who may open one, and who writes to its socket.

admission        limits by worker, token and address, and draining
opening          from a request to a viewer
fastpath         answers event streams before Flask does
stream_writer    writes to one viewer's socket
broadcast        writes to the sockets of all viewers that have caught up, in one pass
write_scheduler  writes to full sockets when they have room
connection       the socket under a stream: bounded, and watched for the client's leaving
ended_jobs       remembers for a moment which jobs have ended
unread_answers   bounds the bytes of answers that clients have not read yet
restraint        slows replays down while the machine has no room
presence         whether anybody watches something live
"""
