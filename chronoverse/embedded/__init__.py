"""The embedded server, for users without a Redis.

    server              leases the server of a data directory, and starts it if needed. A lease is a file
                        lock, which the kernel releases when the process ends
    supervisor          a program that runs one server for as long as there is a lease, and restarts it when it dies
    supervised_process  runs another program next to the service, such as the archiver
    owned_directory     temporary directories of a service, removed by the next one if it was killed
    listeners           which listening sockets belong to the service of a data directory

The first lease starts the supervisor, in its own session: the server lives as long as any lease.
"""
